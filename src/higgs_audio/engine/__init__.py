"""Continuous batching: many requests on one model, from token ids to columns of codes. `speech` decodes the audio."""

from higgs_audio.engine.engine import Engine
from higgs_audio.engine.handle import RequestHandle
from higgs_audio.engine.request import Request

__all__ = ["Engine", "Request", "RequestHandle"]
