"""Random splits, alone and repeated, and the folders of shards that are made of them."""

import json

import numpy as np
import pytest
from helpers import draw_sample, draw_shards, write_shards

from glioma_dist.data.sample import Sample
from glioma_dist.data.shards import subsets
from glioma_dist.data.shards.reader import ShardReader
from glioma_dist.data.shards.subsets import link_subset, write_singly
from glioma_dist.data.splits import draw_repetitions, draw_splits, read_splits, write_splits
from glioma_dist.errors import InputError

KEYS = [f"field{number:02d}" for number in range(30)]
ARTICLE = {"train": 15, "val": 5, "test": 10}


def test_splits_are_disjoint_and_of_the_asked_sizes():
    splits = draw_splits(KEYS, ARTICLE, seed=0)
    assert {name: len(keys) for name, keys in splits.items()} == ARTICLE
    assert sorted(key for keys in splits.values() for key in keys) == KEYS


def test_neither_order_nor_the_global_generator_matters():
    np.random.seed(1)
    first = draw_splits(KEYS, ARTICLE, seed=3)
    np.random.seed(2)
    assert draw_splits(KEYS[::-1] + KEYS[:4], ARTICLE, seed=3) == first
    assert draw_splits(KEYS, ARTICLE, seed=4) != first


def test_every_sample_gets_everywhere():
    times = dict.fromkeys(KEYS, 0)
    for seed in range(400):
        for key in draw_splits(KEYS, ARTICLE, seed)["val"]:
            times[key] += 1
    # 400 draws of 5 in 30: 66.7 each, standard deviation 7.5.
    assert min(times.values()) > 66.7 - 4 * 7.5
    assert max(times.values()) < 66.7 + 4 * 7.5


@pytest.mark.parametrize(
    ("counts", "seed", "words"),
    [
        ({"train": 15, "val": 5, "test": 11}, 0, "31 samples, there are 30"),
        ({"a": 0}, 0, "needs"),
        ({"a": 1}, -1, "seed -1: give a whole number from 0 to 2\\^63 - 1"),
        ({"a": 1}, 2**63, "seed 9223372036854775808"),
    ],
)
def test_what_cannot_be_drawn_is_refused(counts, seed, words):
    with pytest.raises(InputError, match=words):
        draw_splits(KEYS, counts, seed)


def groups_of(size: int) -> dict[str, str]:
    return {key: f"culture{number // size}" for number, key in enumerate(KEYS)}


@pytest.mark.parametrize(("size", "num_seeds"), [(2, 12), (3, 12), (5, 40)])  # many groups take long to draw
def test_a_group_never_stands_on_two_sides(size, num_seeds):
    groups = groups_of(size)
    for seed in range(num_seeds):
        splits = draw_splits(KEYS, ARTICLE, seed, groups)
        sides = [{groups[key] for key in keys} for keys in splits.values()]
        assert sum(map(len, sides)) == len(set.union(*sides))
        for name, keys in splits.items():  # as near to the counts as groups of that size come
            assert len(keys) == len(set(keys)) == ARTICLE[name] // size * size


def test_groups_of_unequal_sizes_fill_the_splits_where_they_can():
    """One culture of 12 images, one of 3, and single ones: 15 / 5 / 10 can be had, and 12 fit into train alone."""
    groups = {key: "large" if n < 12 else "small" if n < 15 else key for n, key in enumerate(KEYS)}
    for seed in range(40):
        splits = draw_splits(KEYS, ARTICLE, seed, groups)
        assert {name: len(keys) for name, keys in splits.items()} == ARTICLE
        assert set(KEYS[:12]) <= set(splits["train"])
        assert any(set(KEYS[12:15]) <= set(keys) for keys in splits.values())


def test_every_group_gets_everywhere():
    groups, times = groups_of(5), {}
    for seed in range(300):
        for key in draw_splits(KEYS, ARTICLE, seed, groups)["val"]:
            times[groups[key]] = times.get(groups[key], 0) + 1 / 5
    # 300 draws of one culture of six: 50 each, standard deviation 6.5.
    assert len(times) == 6
    assert all(abs(count - 50) < 4 * 6.5 for count in times.values())


def test_groups_of_one_sample_draw_what_no_groups_draw():
    assert draw_splits(KEYS, ARTICLE, 5, {key: key for key in KEYS}) == draw_splits(KEYS, ARTICLE, 5)


def test_one_large_group_cannot_be_divided():
    with pytest.raises(InputError, match=r"1 groups \(of 30 samples\) leave one empty"):
        draw_splits(KEYS, ARTICLE, 0, dict.fromkeys(KEYS, "one culture"))


def test_repetitions_are_those_of_the_following_seeds_and_come_back_from_their_file(tmp_path):
    repetitions = draw_repetitions(KEYS, ARTICLE, 7, 10)
    assert repetitions == [draw_splits(KEYS, ARTICLE, 7 + number) for number in range(10)]
    assert len({json.dumps(splits) for splits in repetitions}) == 10
    write_splits(tmp_path / "a" / "splits.json", repetitions, {"seed": 7})
    assert read_splits(tmp_path / "a" / "splits.json") == repetitions
    assert json.loads((tmp_path / "a" / "splits.json").read_text())["seed"] == 7


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is no JSON"),
        ("[]", "holds no splits"),
        ('{"format_version": 2, "repetitions": []}', "format 2"),
        ('{"format_version": 1, "repetitions": [{"train": ["a", "b"], "test": ["a"]}]}', "repetition 0 has a twice"),
    ],
)
def test_a_file_that_holds_no_splits_is_one_line(tmp_path, text, words):
    (tmp_path / "splits.json").write_text(text)
    with pytest.raises(InputError, match=words):
        read_splits(tmp_path / "splits.json")


def test_subsets_are_folders_of_shards_that_share_their_bytes(tmp_path):
    draw_shards(tmp_path / "one", range(4))
    draw_shards(tmp_path / "two", range(4, 7))
    halve = lambda sample: Sample(sample.key, sample.image[::2, ::2], sample.mask[::2, ::2], sample.metadata)  # noqa: E731
    metadata = write_singly([tmp_path / "one", tmp_path / "two"], tmp_path / "all", halve)
    assert sorted(metadata) == [f"cell-{number:03d}" for number in range(7)]
    for _ in range(2):  # the second time it is there
        link_subset(tmp_path / "all", ["cell-005", "cell-001"], tmp_path / "split" / "val")
    reader = ShardReader(tmp_path / "split" / "val")
    assert reader.keys() == ["cell-001", "cell-005"]
    assert reader.index["split"] == "val"
    for place, number in enumerate((1, 5)):
        sample, expected = reader.read(place, 0), draw_sample(number)
        np.testing.assert_array_equal(sample.image, expected.image[::2, ::2])
        np.testing.assert_array_equal(sample.mask, expected.mask[::2, ::2])
    tars = sorted((tmp_path / "split" / "val").glob("*.tar"))
    assert [tar.stat().st_nlink for tar in tars] == [2, 2]
    with pytest.raises(InputError, match="no sample cell-009"):
        link_subset(tmp_path / "all", ["cell-009"], tmp_path / "split" / "test")
    with pytest.raises(InputError, match="several samples"):
        link_subset(tmp_path / "one", ["cell-001"], tmp_path / "split" / "test")


def test_two_processes_make_the_same_subset(tmp_path, monkeypatch):
    """One begins, and the other is done before each step of the first."""
    draw_shards(tmp_path / "one", range(3))
    write_singly([tmp_path / "one"], tmp_path / "all", lambda sample: sample)
    keys, files = ["cell-000", "cell-002"], []
    for name in ("link", "write_json", "rename_in_order"):
        out, step, calls = tmp_path / name / "val", getattr(subsets, name), []

        def first_the_other(*given, out=out, step=step, calls=calls):
            calls.append(given)
            if len(calls) == 1:
                link_subset(tmp_path / "all", keys, out)
            return step(*given)

        with monkeypatch.context() as patch:
            patch.setattr(subsets, name, first_the_other)
            link_subset(tmp_path / "all", keys, out)
        assert ShardReader(out).keys() == keys
        files.append([path.name for path in out.parent.iterdir()])
    assert files == [["val"]] * 3, "nothing else is left"
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(InputError, match="taken: its folder is gone"):
        link_subset(tmp_path / "all", keys, tmp_path / "taken")


def test_the_same_image_from_two_folders_is_refused(tmp_path):
    for name in ("one", "two"):
        write_shards(tmp_path / name, [draw_sample(1)])
    with pytest.raises(InputError, match="comes twice"):
        write_singly([tmp_path / "one", tmp_path / "two"], tmp_path / "all", lambda sample: sample)


@pytest.mark.parametrize(("counts", "seed"), [((5, 5), 0), ((1, 0), 0)])
def test_the_counts_are_told_in_words(counts, seed):
    train, val = counts
    with pytest.raises(InputError, match=f"^splits train {train}, val {val}( need|: each split needs)"):
        draw_splits(["a", "b"], {"train": train, "val": val}, seed)
