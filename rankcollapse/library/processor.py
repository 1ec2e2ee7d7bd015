"""This machine's processor, found without loading torch."""

import re
from pathlib import Path

# The widest instructions that matter here, and the flags of /proc/cpuinfo that tell of them.
INSTRUCTIONS = {"amx_bf16": "AMX", "avx512_bf16": "AVX512-bf16", "avx512f": "AVX512", "avx2": "AVX2", "bf16": "bf16"}
BFLOAT16 = ("AMX", "AVX512-bf16", "bf16")  # the last is an ARM's


def label() -> str:
    """Its make and its instructions, as in `AMD EPYC, AVX512-bf16`."""
    make = re.search(r"^model name\s*: (.*)", _cpuinfo(), re.MULTILINE)
    return ", ".join(part for part in (make[1].strip() if make else "CPU", instructions()) if part)


def instructions() -> str:
    """The widest of INSTRUCTIONS; empty if it has none, or where the system does not tell."""
    flags = re.search(r"^(?:flags|Features)\s*: (.*)", _cpuinfo(), re.MULTILINE)
    return next((name for flag, name in INSTRUCTIONS.items() if flags and flag in flags[1].split()), "")


def multiplies_bfloat16() -> bool:
    """Whether it has instructions for products of bfloat16.

    Without them a step in bfloat16 took 1.8 to 2.2 times as long as in float32 with AVX512, 3.6 to 10.8 with AVX2
    (`tests/bench.py --only formats` with ONEDNN_MAX_CPU_ISA set, torch 2.14).
    """
    return instructions() in BFLOAT16


def has_amx() -> bool:
    """Whether it has AMX, as Intel's since 2023 have."""
    return instructions() == "AMX"


def _cpuinfo() -> str:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:  # not Linux
        return ""
