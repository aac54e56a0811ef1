"""Commands that work while a recording runs."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from poyo_ssl.commands.console import console
from poyo_ssl.errors import ConfigError, StreamError


def serve(
    run: Path,
    recording: str | None = None,
    port: int = 5005,
    pipe: bool = False,
    min_coverage: float = 0.5,
    threads: int = 1,
) -> None:
    """Decode imaging frames as they come, from a loopback socket or a pipe; docs/online.md has the messages.

    Parameters
    ----------
    run : path
        Run folder of 'poyo-ssl finetune'.
    recording : str, optional
        Id of the recording whose neurons are coming; needed if the run knows several.
    port : int
        Port on 127.0.0.1 to listen on; 0 takes a free one and says which.
    pipe : bool
        Read frames from standard input and write predictions to standard output instead.
    min_coverage : float
        Share of a window's values that must be there for a prediction.
    threads : int
        Cores to compute on.
    """
    if threads < 1:
        raise ConfigError(f"--threads of {threads}", allowed="1 or more", fix="change it")
    import torch

    from poyo_ssl.online import Decoder
    from poyo_ssl.online.serve import LOOPBACK, Server, warm_up

    torch.set_num_threads(threads)
    if pipe:
        _serve_pipe(run, recording, min_coverage)
        return
    decoder = Decoder(run, recording, min_coverage=min_coverage)
    warm_up(decoder)
    # What supervises a rig's programs stops them by SIGTERM, and a script's background job does not hear Ctrl-C.
    former = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with Server(decoder, port, report=lambda line: console.print(line, markup=False, highlight=False)) as server:
            console.print(
                f"decoding {decoder.recording_id} ({len(decoder.unit_ids)} neurons) on {LOOPBACK}:{server.port}; "
                "stop with Ctrl-C",
                highlight=False,
                soft_wrap=True,
            )
            server.serve_forever()
    except KeyboardInterrupt:
        console.print("stopped")
    finally:
        signal.signal(signal.SIGTERM, former)


def _serve_pipe(run: Path, recording: str | None, min_coverage: float) -> None:
    from poyo_ssl.online import Decoder
    from poyo_ssl.online.serve import answer, warm_up

    # Whatever a library prints must not end up among the predictions.
    with os.fdopen(os.dup(sys.stdout.fileno()), "wb") as sink, os.fdopen(os.dup(sys.stdin.fileno()), "rb") as source:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        decoder = Decoder(run, recording, min_coverage=min_coverage)
        warm_up(decoder)
        try:
            answer(decoder, source, sink)
        except BrokenPipeError:
            # What is still in the buffer has no reader either.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sink.fileno())
            raise StreamError("nobody reads the predictions", fix="keep the pipe's other end open") from None
