"""Many requests on one device: scheduling, keys and values, steps. Frames of codes come out, never sound."""

from higgs_audio.engine.engine import Engine
from higgs_audio.engine.handle import RequestHandle
from higgs_audio.engine.request import FINISH_REASONS, Request

__all__ = ["FINISH_REASONS", "Engine", "Request", "RequestHandle"]
