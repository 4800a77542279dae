"""The article's tables as data, the runs that they take, and the pages that are made of what those found."""

import json
import re
import time
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers import command, draw_sample, draw_shards

from glioma_dist.config import EvaluateConfig, ModelConfig, PredictConfig, TrainConfig
from glioma_dist.config.file import from_dict
from glioma_dist.config.reproduction import ReproduceConfig
from glioma_dist.data.shards.reader import ShardReader
from glioma_dist.data.splits import read_splits
from glioma_dist.data.transforms import resize_mask
from glioma_dist.errors import InputError
from glioma_dist.evaluation.comparison import holm, paired_test
from glioma_dist.report.study_page import html_page, markdown_page, write_study_report
from glioma_dist.report.study_plots import (
    draw_epochs,
    draw_pictures,
    draw_plot,
    draw_scores,
    draw_training_set_size,
)
from glioma_dist.reproduction.estimate import hours
from glioma_dist.reproduction.execute import execute, failure, is_finished
from glioma_dist.reproduction.folder import hold_settings, settings_text
from glioma_dist.reproduction.material import at_native_size, group_of, prepare
from glioma_dist.reproduction.plan import RowPlan, Settings, make_plan, share
from glioma_dist.reproduction.presets import PRESETS, Preset, Schedule
from glioma_dist.reproduction.protocol import (
    AT_704,
    LIVECELL_704,
    RESIZE_704,
    Claim,
    Pretraining,
    Row,
    find_studies,
    table1,
    table2,
    table3,
    table4,
    table5,
)
from glioma_dist.reproduction.results import add_comparisons, compare, judge
from glioma_dist.scale.operations import forward_operations
from glioma_dist.size import Size

FULL = Settings(PRESETS["full"], Path("livecell"), Path("studies/x"))
NUM_LIVECELL = (3253, 570)
MARKS = {"train": TrainConfig, "evaluate": EvaluateConfig, "predict": PredictConfig}


def written(study) -> list[tuple[str, str, str, str, tuple[float, ...]]]:
    return [
        (
            row.encoder,
            row.start_title,
            row.fine_tuning.title if row.fine_tuning else "",
            row.comparison.title,
            row.article,
        )
        for row in study.rows
    ]


def test_tables_1_and_2_are_the_articles():
    expected = """
        mit_b3 random .868 | mit_b3 ImageNet .930 | mit_b3 LIVECell (704p) .940
        vgg19 random .913 | vgg19 ImageNet .932 | vgg19 LIVECell (704p) .940"""
    lines = [cell.strip().rsplit(" ", 1) for line in expected.strip().splitlines() for cell in line.split("|")]
    found = [(f"{encoder} {start}", article) for encoder, start, _, _, article in written(table1())]
    assert found == [(name, (float(score),)) for name, score in lines]
    assert {line[2:4] for line in written(table1())} == {("resize 704p", "(704p, 704p)")}
    scores = {(line[0], line[1], line[3]): line[4][0] for line in written(table2())}
    assert scores == {
        ("mit_b3", "ImageNet", "(704p, 2592p)"): 0.876,
        ("mit_b3", "ImageNet", "(2592p, 2592p)"): 0.696,
        ("vgg19", "ImageNet", "(704p, 2592p)"): 0.878,
        ("vgg19", "ImageNet", "(2592p, 2592p)"): 0.742,
        ("mit_b3", "LIVECell (704p)", "(704p, 2592p)"): 0.886,
        ("mit_b3", "LIVECell (704p)", "(2592p, 2592p)"): 0.817,
        ("vgg19", "LIVECell (704p)", "(704p, 2592p)"): 0.887,
        ("vgg19", "LIVECell (704p)", "(2592p, 2592p)"): 0.632,
    }


def test_table_3_compares_everything_at_full_size_and_native_adds_the_missing_row():
    lines = written(table3())
    assert [line[4][0] for line in lines] == [
        *(0.904, 0.901, 0.901, 0.903, 0.907, 0.903, 0.902, 0.900),
        *(0.905, 0.904, 0.904, 0.905, 0.899),
    ]
    assert lines[11][4] == (0.905, 0.903)  # the article lists this row twice
    for _, _, tuning, compared, _ in lines:
        way, size = tuning.split(" ")
        assert compared == ("(2592p, 2592p)" if way == "crop" else f"({size}, 2592p)")
    native = table3(native=True)
    assert native.rows[:13] == table3().rows
    added = [(row.encoder, row.start_title, row.fine_tuning.title, row.remark) for row in native.rows[13:]]
    starts = ("ImageNet", "LIVECell (704p)", "LIVECell (1472p)", "LIVECell (1472p), RRC 57±30")
    assert added == [("mit_b3", start, "resize 2592p", "out of memory") for start in starts]


def test_tables_4_and_5_vary_augmentation_alone():
    rows = table4().rows
    assert [row.article[0] for row in rows] == [0.899, 0.903, 0.904, 0.903, 0.906, 0.906, 0.903]
    assert [row.start.crop_side for row in rows[:3]] == [None, (0.52, 0.62), (0.27, 0.87)]
    assert [" ".join(row.start.augment) for row in rows[3:]] == [
        "flips",
        "flips sharpen",
        "flips contrast",
        "flips sharpen contrast",
    ]
    assert {(row.fine_tuning.title, row.comparison.title) for row in rows} == {("crop 1472p", "(2592p, 2592p)")}
    assert [row.article[0] for row in table5().rows] == [0.904, 0.904, 0.903, 0.902]
    assert {row.start for row in table5().rows} == {Pretraining("1472p", (0.27, 0.87))}
    assert table4().rows[2].fine_tuning == table5().rows[0].fine_tuning


@pytest.mark.parametrize("preset", ["small", "medium", "full"])
def test_every_run_of_every_study_has_a_config_that_its_entry_point_takes(preset):
    settings = replace(FULL, preset=PRESETS[preset])
    configs = {}
    for study in find_studies("all", native=True):
        plan = make_plan(study, settings, NUM_LIVECELL)
        assert len(plan.rows) == len(study.rows)
        assert all(0 <= number < len(study.rows) for each in study.claims for number in (each.better, each.worse))
        folders = set()
        for job in plan.jobs:
            assert job.needs == tuple(folder for folder in job.needs if folder in folders), "before what it needs"
            folders |= {job.folder} if job.command == "train" else set()
            from_dict(MARKS[job.command], job.config).validate()
            # A run has one meaning, whichever table asks for it.
            assert configs.setdefault(job.config_file, job.config) == job.config
    outs = [config["out"] for config in configs.values()]
    assert len(set(outs)) == len(outs)


def test_pretraining_is_shared_and_repetitions_have_their_own_images_and_seeds():
    plan = make_plan(table1(), replace(FULL, seed=5), NUM_LIVECELL)
    trainings = [job for job in plan.jobs if job.command == "train"]
    pretrainings = [job for job in trainings if not job.needs and "livecell" in job.folder.name]
    assert [job.config["model"]["init"] for job in pretrainings] == ["imagenet"] * 2
    assert len(trainings) == 2 + 6 * 10
    for row in plan.rows:
        own = [job for job in trainings if job.folder in row.training]
        assert [job.config["seed"] for job in own] == list(range(5, 15))
        assert (
            len(
                {
                    job.config["data"]["train"]
                    if isinstance(job.config["data"]["train"], str)
                    else tuple(job.config["data"]["train"])
                    for job in own
                }
            )
            == 10
        )
        if isinstance(row.row.start, Pretraining):
            (base,) = [job for job in pretrainings if job.encoder == row.row.encoder]
            assert {job.config["model"]["init"] for job in own} == {str(base.folder / "run" / "best")}
    full = {job.config_file for job in make_plan(find_studies("figure3", False)[0], FULL, NUM_LIVECELL).jobs}
    shared = {job.config_file for job in make_plan(table1(), FULL, NUM_LIVECELL).jobs}
    assert shared <= full, "figure 3's rows of 15 images are table 1's"


def test_imagenet_from_files_from_the_hub_and_from_nowhere():
    one = replace(FULL, imagenet=("mit_b3=weights/b3.safetensors",))
    plan = make_plan(table1(), one, NUM_LIVECELL)
    assert [row.impossible is None for row in plan.rows] == [True, True, True, True, False, True]
    weights = {
        (job.encoder, job.config["model"]["init"]): job.config["model"].get("weights")
        for job in plan.jobs
        if job.command == "train" and job.config["model"]["init"] in ("imagenet", "random")
    }
    assert weights["mit_b3", "imagenet"] == "weights/b3.safetensors"
    assert not weights["vgg19", "random"]
    assert plan.notes == ("Pretraining of vgg19 began from random weights, because no ImageNet weights were given",)


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_tasks_share_all_runs_out_without_waiting_for_each_other(count):
    jobs = tuple(
        {
            job.config_file: job
            for study in find_studies("all", True)
            for job in make_plan(study, FULL, NUM_LIVECELL).jobs
        }.values()
    )
    costs = {job.config_file: float(sum(n * size.width * size.height for n, _, size in job.num_passes)) for job in jobs}
    parts = [share(jobs, costs, number, count) for number in range(count)]
    assert sorted(str(job.config_file) for part in parts for job in part) == sorted(str(j.config_file) for j in jobs)
    for part in parts:
        own = {job.folder for job in part if job.command == "train"}
        assert all(set(job.needs) <= own for job in part)
    loads = [sum(costs[job.config_file] for job in part) for part in parts]
    assert max(loads) < 1.5 * sum(loads) / count


def test_operations_are_counted_by_size_and_hours_follow():
    """The head alone: a 3x3 convolution of 16 channels to one, two operations a product, at full size."""
    small, large = (forward_operations(ModelConfig(encoder="mit_tiny"), Size(64, side)) for side in (64, 128))
    assert small > 64 * 64 * 16 * 9 * 2
    assert large == pytest.approx(2 * small, rel=0.1)
    settings = replace(FULL, preset=replace(PRESETS["small"], encoders={"mit_b3": "mit_tiny", "vgg19": "mit_tiny"}))
    plan = make_plan(table1(), settings, (10, 5))
    job = next(job for job in plan.jobs if job.command == "train" and not job.needs)
    size = settings.preset.sizes["704p"]
    operations = (12 * 15 * 3 + 12 * 5) * forward_operations(ModelConfig(encoder="mit_tiny"), size)
    assert hours(job, 1e9) == pytest.approx((operations / 1e9 + 30) / 3600)


def test_at_native_size_takes_the_middle_window_of_the_right_proportions():
    sample = draw_sample(1, width=90, height=96)
    fitted = at_native_size(sample, Size(60, 40))
    assert fitted.image.shape == fitted.mask.shape == (40, 60)
    np.testing.assert_array_equal(fitted.mask, resize_mask(sample.mask[18:78], Size(60, 40)))
    assert (fitted.metadata["width"], fitted.metadata["height"]) == (60, 40)
    assert at_native_size(sample, None) is sample


def test_images_are_grouped_by_fact_or_by_name():
    metadata = {"group": "well 3", "file_name": "cultureB_20x_4.tif"}
    assert group_of("key", metadata, "group") == "well 3"
    assert group_of("key", {}, "group") == "key"
    assert group_of("key", metadata, "(culture[A-Z])_") == "cultureB"
    for wrong in ("(", "culture", "(nothing)_", "(nothing)?_", "(n*)", "(a{99999999999})"):
        with pytest.raises(InputError, match="--group-by"):
            group_of("key", metadata, wrong)


def test_training_sets_of_figure_3_lie_within_each_other(tmp_path):
    draw_shards(tmp_path / "target", range(9), width=48, height=32)
    tiny = Preset("tiny", PRESETS["full"].sizes, None, {}, 2, Schedule(1, 2), Schedule(1, 2))
    settings = Settings(tiny, tmp_path, tmp_path / "out", counts=(5, 2, 2))
    study = find_studies("figure3", False)[0]
    rows = tuple(
        replace(
            row,
            fine_tuning=replace(
                row.fine_tuning, num_train=row.fine_tuning.num_train and row.fine_tuning.num_train // 5 + 1
            ),
        )
        for row in study.rows
    )
    prepare(settings, [tmp_path / "target"], "none", [replace(study, rows=rows)])
    for number, splits in enumerate(read_splits(settings.splits_file)):
        parts = [set(ShardReader(settings.split(number, name)).keys()) for name in ("train-02", "train-03", "train")]
        assert list(map(len, parts)) == [2, 3, 5]
        assert parts[0] < parts[1] < parts[2] == set(splits["train"])
    assert cv2.imread(str(tmp_path / "out" / "target" / "picture.png"), cv2.IMREAD_UNCHANGED).shape == (32, 48)


def test_a_study_that_was_stopped_goes_on_and_counts_the_time_of_all_starts(tmp_path):
    plan = make_plan(table1(), replace(FULL, out=tmp_path), NUM_LIVECELL)
    jobs = [job for job in plan.jobs if job.folder.name == "00" and not job.needs][:3]
    started = []

    def launch(script: str, config: Path, log: Path) -> int:
        started.append(config)
        time.sleep(0.05)
        if len(started) == 2:
            (config.parent / "run" / "last").mkdir(parents=True)
            raise KeyboardInterrupt
        return 0

    with pytest.raises(KeyboardInterrupt):
        execute(jobs, launch, {"device": "here"}, lambda _: None)
    assert [is_finished(job) for job in jobs] == [True, False, False]
    assert (jobs[1].folder / "run" / "last").is_dir(), "what the run goes on from"
    assert execute(jobs, launch, {"device": "here"}, lambda _: None) == []
    assert started == [job.config_file for job in (jobs[0], jobs[1], jobs[1], jobs[2])]
    assert not (jobs[1].folder / "run" / "last").exists()
    took = [json.loads(job.marker.read_text()) for job in jobs]
    assert took[1]["seconds"] >= 0.1
    assert {each["device"] for each in took} == {"here"}
    assert execute(jobs, launch, {}, lambda _: None) == []
    assert len(started) == 4


def test_the_reason_of_a_failure_is_the_entry_points_own_line(tmp_path):
    job = next(job for job in make_plan(table1(), replace(FULL, out=tmp_path), NUM_LIVECELL).jobs if not job.needs)

    def launch(script: str, config: Path, log: Path) -> int:
        log.write_text("error: of an earlier start\n" if not log.exists() else log.read_text() + "Killed\n")
        return 1

    assert execute([job], launch, {}, lambda _: None) == [job]
    assert failure(job) == "of an earlier start"
    execute([job], launch, {}, lambda _: None)
    assert failure(job).startswith("exit code 1, see ")


# What was found.


def found_rows(means: list[float], spread: float = 0.002, count: int = 10) -> tuple[list[RowPlan], list[list[dict]]]:
    generator = np.random.default_rng(0)
    base = generator.normal(0, 0.05, (count, 10))
    plans = [RowPlan(Row("mit_b3", "random", RESIZE_704, AT_704), (Path("s"),) * count, ()) for _ in means]
    scores = [
        [{f"image{n}": mean + base[k, n] + generator.normal(0, spread) for n in range(10)} for k in range(count)]
        for mean in means
    ]
    return plans, scores


def test_rows_are_compared_with_the_best_that_was_tested_alike():
    plans, scores = found_rows([0.85, 0.90, 0.9001])
    scores[0] = scores[0][:9]  # a repetition is missing
    other = [[{"elsewhere": 0.99}] for _ in range(10)]
    plans.append(RowPlan(plans[0].row, (Path("s"),) * 10, ()))
    scores.append([each[0] for each in other])
    rows = [{"mean": float(np.mean([list(images.values()) for images in each]))} for each in scores]
    add_comparisons(rows, tuple(plans), scores, FULL)
    best = 2 if rows[2]["mean"] > rows[1]["mean"] else 1
    assert [row["best"] for row in rows] == [number == best for number in range(4)]
    assert rows[0]["p_best"] is None
    assert rows[3]["p_best"] is None
    test = paired_test(scores[best], scores[3 - best], 15)
    assert rows[3 - best]["below_best"] == pytest.approx(test.mean)
    assert rows[3 - best]["p_best"] == pytest.approx(holm([test.p_value])[0])


@pytest.mark.parametrize(
    ("means", "count", "verdict"),
    [
        ([0.9, 0.8], 10, "agrees"),
        ([0.8, 0.9], 10, "disagrees"),
        ([0.9, 0.9], 10, "not told apart"),
        ([0.9, 0.8], 1, "cannot be told from one repetition"),
    ],
)
def test_what_the_article_says_is_judged_by_the_runs(means, count, verdict):
    plans, scores = found_rows(means, 0.02, count)
    judged = judge(Claim("the first is better", 0, 1), tuple(plans), scores, FULL)
    assert judged["verdict"] == verdict
    assert compare((plans[0], []), (plans[1], scores[1]), FULL) is None


def a_row(model: str, start: str, num_train: int, mean: float | None) -> dict:
    spread = {"mean": mean, "standard_deviation": None, "interval": None, "repetitions": []}
    if mean is not None:
        spread |= {"standard_deviation": 0.01, "interval": [mean - 0.02, mean + 0.02], "repetitions": [mean] * 3}
    names = {"model": model, "start": start, "fine_tuning": "resize 704p", "compared": "(704p, 704p)"}
    marks = {"best": False, "below_best": None, "p_best": 0.0001, "status": "ok" if mean else "it|failed <here>"}
    return {**names, **spread, **marks, "num_train": num_train, "article": [0.9], "article_says": ""}


@pytest.fixture
def results(tmp_path) -> dict:
    pictures = []
    for start in ("random", "ImageNet"):
        folder = tmp_path / start
        folder.mkdir()
        cv2.imwrite(str(folder / "a.overlay.png"), np.full((30, 40, 3), (0, 0, 250), np.uint8))
        pictures.append({"start": start, "model": "MiT-B3", "image": str(tmp_path / "a.png"), "folder": str(folder)})
    cv2.imwrite(str(tmp_path / "a.png"), np.arange(1200, dtype=np.uint16).reshape(30, 40) * 50)
    protocol = {"sizes": {"704p": "704x512"}, "target_size": "as taken", "counts": [15, 5, 10], "num_repetitions": 3}
    schedule = {"epochs": 3, "batch_size": 2, "patience": 4, "max_steps": None}
    protocol |= {"pretraining": schedule, "fine_tuning": schedule, "lr": 1e-4, "seed": 0, "level": 0.95}
    curves = [{"model": "MiT-B3", "start": "random", "repetitions": [[[1, 0.5], [2, 0.3]], [[1, 0.6]]]}]
    return {
        **{"study": "table1", "title": "A & B", "preset": "small", "protocol": protocol, "data": {}, "notes": []},
        "metadata": {"device": "none", "commit": "0", "command": "x"},
        "rows": [
            a_row("MiT-B3", s, n, m) for s in ("random", "ImageNet") for n, m in ((5, 0.8), (10, 0.85), (15, None))
        ],
        **{"claims": [], "runs": [], "curves": curves, "pictures": pictures},
    }


@pytest.mark.parametrize("shows", ["table", "training-set size", "epochs", "pictures"])
def test_every_kind_of_plot_is_a_picture_and_the_same_each_time(results, shows):
    results["shows"] = shows
    plot = draw_plot(results)
    picture = cv2.imdecode(np.frombuffer(plot, np.uint8), cv2.IMREAD_COLOR)
    assert min(picture.shape[:2]) > 100
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 30
    assert draw_plot(results) == plot
    nothing = {**results, "rows": [a_row("MiT-B3", "random", 5, None)], "curves": [], "pictures": []}
    assert draw_plot(nothing) is None


def test_scores_of_two_comparisons_are_two_panels_each_sorted(results):
    means = {"A": (0.4, 0.5), "B": (0.6, 0.3), "C": (0.5, 0.4)}
    results["rows"] = [
        a_row(model, "LIVECell", 15, mean) | {"compared": compared}
        for model, pair in means.items()
        for compared, mean in zip(("LIVECell test", "zero-shot"), pair, strict=True)
    ]
    panels = draw_scores(results).axes
    assert [axes.get_title(loc="left") for axes in panels] == ["LIVECell test", "zero-shot"]
    assert [[label.get_text() for label in axes.get_yticklabels()] for axes in panels] == [list("BCA"), list("ACB")]
    assert panels[0].get_xlim() == panels[1].get_xlim()
    drawn = [[line.get_xdata()[0] for line in axes.lines if line.get_marker() == "o"] for axes in panels]
    assert drawn == [[0.6, 0.5, 0.4], [0.5, 0.4, 0.3]]


def test_a_trend_of_one_point_is_no_plot_and_an_older_plot_is_removed(results, tmp_path):
    results["shows"] = "training-set size"
    assert tmp_path / "out" / "table1.png" in write_study_report(results, tmp_path / "out")
    results["rows"] = [row for row in results["rows"] if row["num_train"] == 5]
    assert draw_plot(results) is None
    assert tmp_path / "out" / "table1.png" not in write_study_report(results, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.png"))
    results["curves"] = [{"model": "MiT-B3", "start": "random", "repetitions": [[[1, 0.5]], [[1, 0.6]]]}]
    assert draw_epochs(results) is None


def test_bars_and_bands_are_explained_in_the_plot(results):
    for draw, word in ((draw_scores, "Intervals"), (draw_training_set_size, "Bars"), (draw_epochs, "Bands")):
        assert word in draw(results).get_supxlabel()


def test_a_mask_that_is_missing_leaves_its_reason(results):
    results["rows"][5]["status"] = "no ImageNet weights were given"
    results["pictures"][1] |= {"model": "VGG19"}
    panels = draw_pictures(results).axes
    assert [[text.get_text() for text in axes.texts] for axes in panels] == [
        *([], [], ["no ImageNet weights were given"]),
        *([], ["no such run"], []),
    ]


def test_pages_say_what_did_not_run_and_that_a_small_study_answers_nothing(results):
    results["shows"] = "table"
    for page in (markdown_page(results, False), html_page(results, None)):
        assert "not what its answer is" in page
        assert "&lt; 0.001" in page or "< 0.001" in page
        assert "0.780 to 0.820" in page
    assert "it\\|failed" in markdown_page(results, False)
    assert "it|failed &lt;here&gt;" in html_page(results, None)
    assert "<title>A &amp; B</title>" in html_page(results, None)


# The command.


def test_a_dry_run_needs_no_data_and_lists_every_run(tmp_path):
    ended = command(
        "reproduce",
        "table1",
        "--dry-run",
        "--preset",
        "small",
        "--out",
        tmp_path / "x",
        "--imagenet",
        "none",
    )
    assert ended.exit_code == 0, ended.stderr
    lines = ended.stdout.splitlines()
    assert sum(int(match[1]) for line in lines if (match := re.match(r" *[\d.]+ h +(\d+) x ", line))) == 2 + 4 * 2 * 2
    assert "18 of 18 runs" in ended.stdout
    assert "left out: no ImageNet weights of mit_b0" in ended.stdout
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"study": "table1", "native": True}, "--native is for table3"),
        ({"imagenet": ("mit_b3",)}, "ENCODER=FILE"),
        ({"imagenet": ("none", "hub")}, "none cannot be combined"),
        ({"repetitions": 0}, "--repetitions"),
        ({"repetitions": 100_000}, "--repetitions"),
        ({"counts": (15, 0, 10)}, "--counts 15 0 10"),
        ({"seed": -1}, "--seed -1"),
        ({"seed": 2**63 - 1}, "2^63 - 1000"),  # its second repetition's would be too large
        ({"workers": -1}, "--workers -1"),
        ({"source_splits": ("test", "val", "test")}, "test would be pretrained on"),
        ({"target": (Path("s3:/bucket/x"),)}, "takes no URLs"),
        ({"picture": Path("gone.png")}, "--picture gone.png"),
        ({"target": ()}, "--target"),
        ({"gpu_tflops": 0.0}, "--gpu-tflops"),
    ],
)
def test_bad_flags_are_one_line(wrong, words):
    with pytest.raises(InputError, match=re.escape(words)):
        ReproduceConfig(**{"study": "table3", **wrong}).validate()


def test_a_folder_of_another_study_is_refused(tmp_path):
    settings = replace(FULL, out=tmp_path)
    images = {"target_data": ["abc"], "source_data": None}
    assert hold_settings(tmp_path, settings_text(settings) | images)
    assert not hold_settings(tmp_path, settings_text(settings) | images)
    assert json.loads((tmp_path / "study.json").read_text())["preset"]["num_repetitions"] == 10
    moved = replace(settings, workers=7, activation_checkpointing="full", source=Path("moved"))
    hold_settings(tmp_path, settings_text(moved) | {"target_data": None, "source_data": ["def"]})
    with pytest.raises(InputError, match="seed 0 -> 1"):
        hold_settings(tmp_path, settings_text(replace(settings, seed=1)) | images)
    with pytest.raises(InputError, match="target_data"):
        hold_settings(tmp_path, settings_text(settings) | {"target_data": ["another"]})
    (tmp_path / "study.json").write_text("")
    with pytest.raises(InputError, match=r"study.json: is damaged"):
        hold_settings(tmp_path, settings_text(settings))


def test_the_encoders_are_known_and_sixteen():
    rows = find_studies("encoders", False)[0].rows
    assert len(rows) == 32
    for encoder in {row.encoder for row in rows}:
        ModelConfig(encoder=encoder).validate()
    assert {row.comparison.data for row in rows} == {"source", "target"}
    assert {row.start for row in rows} == {LIVECELL_704}
