"""Decoding while the recording runs: one imaging frame in, one prediction out."""

from poyo_ssl.online.decoder import Decoder, Prediction

__all__ = ["Decoder", "Prediction"]
