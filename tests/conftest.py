"""What is so in every test."""

from __future__ import annotations

import os

# Basler's software reads it once, when it is loaded: four emulated cameras, 0815-0000 to 0815-0003.
os.environ.setdefault("PYLON_CAMEMU", "4")
