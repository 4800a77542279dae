"""The checks of the proof run, in the order in which they run."""

from __future__ import annotations

from glioma_dist.benchmark.proof.runner import Check

HERE = "glioma_dist.benchmark.proof"
_LEVELS = ("none", "selective", "full", "offload")
_STEP = ("step", "launches", "GPU busy", "synchronisations", "synchronising operations")
_PRECISIONS = ("fp32", "bf16", "fp16")
_WITHOUT_TF32 = (("NVIDIA_TF32_OVERRIDE", "0"),)
_DETERMINISTIC = (("CUBLAS_WORKSPACE_CONFIG", ":4096:8"),)

CHECKS = (
    Check(
        "preflight",
        f"{HERE}.preflight:look",
        (
            *("PyTorch", "deterministic algorithms by default", "a product on the device"),
            *("driver", "compute capability", "cuDNN", "memory"),
        ),
        seconds=12,
    ),
    # What measures nothing runs side by side, the longest first.
    Check(
        "compile",
        f"{HERE}.kernels:look_at_compiling",
        (
            *("graphs, one a kind of layer", "graph breaks", "losses against those of the plain network"),
            "graphs with one image",
        ),
        seconds=85,
        measures=False,
    ),
    Check(
        "interruption",
        f"{HERE}.interruption:stop_and_resume",
        (
            *("a run with workers ends", "its validations", "stopped by SIGTERM", "from SIGTERM to its end"),
            *("the same command resumes", "its losses, to the bit"),
        ),
        seconds=70,
        environment=_DETERMINISTIC,
        measures=False,
    ),
    Check(
        "cpu",
        f"{HERE}.numerics:compare_with_cpu",
        (
            *("losses in fp32", "losses in channels_last", "losses in bf16", "bf16 rounds", "losses in fp16"),
            *("fp16 rounds", "fp16, resumed"),
        ),
        seconds=50,
        environment=_WITHOUT_TF32,
        measures=False,
    ),
    Check(
        "gradients",
        f"{HERE}.numerics:compare_gradients",
        tuple(f"gradients in fp32, {level}" for level in _LEVELS),
        seconds=35,
        environment=_WITHOUT_TF32,
        measures=False,
    ),
    Check(
        "repeat",
        f"{HERE}.numerics:repeat",
        tuple(
            f"two equal runs, {name}: {what}"
            for name in ("as by default", "deterministic")
            for what in ("losses", "weights")
        ),
        seconds=20,
        environment=_DETERMINISTIC,
        measures=False,
    ),
    Check(
        "inference",
        f"{HERE}.inference:compare_inference",
        ("evaluate: Dice", "predict: masks", "predict: cells and background"),
        seconds=20,
        environment=_WITHOUT_TF32,
        measures=False,
    ),
    Check(
        "attention",
        f"{HERE}.kernels:look_at_attention",
        tuple(f"{precision}: {kind} attention" for precision in _PRECISIONS for kind in ("math", "fused")),
        seconds=30,
        measures=False,
    ),
    Check(
        "large_maps",
        f"{HERE}.large_maps:look_at_last_block",
        tuple(
            f"{megapixels} Mpx, {layout}, {level}"
            for level in ("none", "full")
            for layout in ("contiguous", "channels_last")
            for megapixels in (68, 100, 135)
        ),
        seconds=30,
    ),
    Check(
        "steps",
        f"{HERE}.step_costs:measure_levels",
        tuple(f"{level}: {what}" for level in _LEVELS for what in _STEP),
        seconds=70,
    ),
    Check(
        "tiles",
        f"{HERE}.tile_sizes:sweep",
        (*(f"tiles of 2^{power} numbers" for power in (22, 24, 26, 28)), "the default's step"),
        seconds=68,
    ),
    Check(
        "memory",
        f"{HERE}.memory:compare_with_estimator",
        tuple(
            f"{size}, {level}: {kind}"
            for size, levels in (("native", _LEVELS), ("middle", _LEVELS[:3]), ("small", _LEVELS[:1]))
            for level in levels
            for kind in ("allocated", "fits")
        ),
        seconds=110,
    ),
    Check(
        "ddp",
        f"{HERE}.several:compare_ddp",
        ("DDP, mit_tiny", "DDP, resnet50", "DDP, mobilenet_v2"),
        seconds=150,
        devices=2,
    ),
    Check(
        "spatial", f"{HERE}.several:compare_spatial", tuple(f"spatial, {each}" for each in _LEVELS[:3]), 90, devices=2
    ),
    Check(
        "resume_2",
        f"{HERE}.several:save_and_resume",
        ("DDP, saved and resumed", "FSDP2, saved and resumed"),
        seconds=150,
        devices=2,
    ),
    Check(
        "killed",
        f"{HERE}.several:kill_one",
        ("the killed process", "one killed: all have ended", "one killed: the other says so"),
        seconds=120,
        devices=2,
    ),
)
