# What the C++ module has is said where it is bound, native/bind.cpp; only backends/native.py and
# `forerun doctor` look inside.
from typing import Any

def __getattr__(name: str) -> Any: ...
