"""Continuous batching: many requests on one model, from token ids to columns of codes. `speech` decodes the audio."""

from higgs_audio.engine.engine import Engine
from higgs_audio.engine.handle import RequestHandle
from higgs_audio.engine.request import FINISH_REASONS, Request

__all__ = ["FINISH_REASONS", "Engine", "Request", "RequestHandle"]
