"""What a line records of its frames, and how much disk it may take."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from pipeline.config.types import Endpoint, PathText, Strict


class RecordingConfig(Strict):
    folder: PathText | None = None
    """Recordings lie in it under the station's and the camera's name. None: in the state folder."""
    endpoint: Endpoint | None = None
    """Where pictures of recorded frames are asked for; None: a socket in the run directory."""
    record: Literal["evidence", "all"] = "evidence"
    """evidence: every frame that is `fail` or `invalid`, and a sample of passes."""
    sample_passes: float = Field(default=0.01, ge=0, le=1)
    """The share of passes that is kept, chosen by a hash of the frame's id."""
    before: int = Field(default=0, ge=0, le=1000)
    """Frames before one that is `fail` or `invalid` that are kept with it."""
    after: int = Field(default=0, ge=0, le=1000)
    buffer_mb: PositiveInt = 256
    """Frames that wait in memory for their verdict, or to be written; all cameras together."""
    quota_gb: PositiveFloat = 50.0
    """Of this station: its oldest recordings make room."""
    keep_free_gb: NonNegativeFloat = 5.0
    """Left on the disk for others: below it recording pauses."""
    file_mb: PositiveInt = 1024
    file_s: PositiveFloat = 600.0
    compress_threads: NonNegativeInt = 1
    """That compress a frame; 0: as many as there are cores."""
