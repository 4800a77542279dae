"""Random splits of a data set that has none of its own, once or repeatedly."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from glioma_dist.errors import InputError
from glioma_dist.files import read_json, write_json_atomically
from glioma_dist.limits import check_seed

SPLIT_NAMES = ("train", "val", "test")
WHOLE = "all"
"""The folder of a data set that is not divided."""
TRIES = 1000
"""Orders of the groups that are tried until one fills all splits."""
FORMAT_VERSION = 1


def draw_splits(
    keys: Iterable[str], counts: Mapping[str, int], seed: int, groups: Mapping[str, str] | None = None
) -> dict[str, list[str]]:
    """Draw disjoint splits at random: for each name in `counts` that many keys, sorted.

    The same keys, counts and seed give the same splits, whatever the keys' order; keys beyond the counts stay
    out. groups: key -> group; all drawn keys of a group come into the same split. Where groups do not add up to the
    counts, splits are smaller, as little as found.
    Raises InputError where a count is below 1, the seed is none, more is asked for than there is, or the groups
    leave a split empty.
    """
    check_division(counts, seed)
    keys = sorted(set(keys))
    wanted = sum(counts.values())
    if wanted > len(keys):
        raise InputError(f"{_told(counts)} need {wanted} samples, there are {len(keys)}; lower the counts")
    generator = np.random.default_rng(seed)
    if groups is not None and len({groups[key] for key in keys}) < len(keys):
        return _draw_grouped(keys, counts, generator, groups)
    shuffled = generator.permutation(len(keys))
    splits, start = {}, 0
    for name, count in counts.items():
        splits[name] = sorted(keys[place] for place in shuffled[start : start + count])
        start += count
    return splits


def draw_shares(groups: Mapping[str, str], shares: Mapping[str, float], seed: int) -> dict[str, list[str]]:
    """Draw disjoint splits at random that take every key: for each name in `shares` so large a share of the groups,
    at least one, with all their keys, sorted.

    groups: key -> group. The same groups, shares and seed give the same splits, whatever the keys' order. Raises
    InputError where a share is not above 0, the seed is none, or there are fewer groups than splits.
    """
    check_seed("seed", seed)
    if not all(0 < share < float("inf") for share in shares.values()):
        raise InputError(f"{_told(shares)}: each share is above 0")
    names = sorted(set(groups.values()))
    if len(names) < len(shares):
        raise InputError(
            f"{len(names)} {'group' if len(names) == 1 else 'groups'} of images cannot be drawn into {len(shares)} "
            f"splits ({', '.join(shares)}): each needs one; give more images, or a --group-pattern that makes smaller "
            "groups, or omit --split-seed to write one split"
        )
    wanted = {name: share / sum(shares.values()) * len(names) for name, share in shares.items()}
    counts = {name: max(1, int(number)) for name, number in wanted.items()}
    while (rest := len(names) - sum(counts.values())) != 0:
        # The split that lacks most gets the next group; where each has one at least, the one with most over gives.
        step = 1 if rest > 0 else -1
        changed = [name for name in counts if step > 0 or counts[name] > 1]
        counts[max(changed, key=lambda name: step * (wanted[name] - counts[name]))] += step
    order, splits, start = np.random.default_rng(seed).permutation(len(names)), {}, 0
    for name, count in counts.items():
        drawn = {names[place] for place in order[start : start + count]}
        splits[name] = sorted(key for key, group in groups.items() if group in drawn)
        start += count
    return splits


def check_division(counts: Mapping[str, int], seed: int) -> None:
    """Raises InputError if no data can be split in this way."""
    check_seed("seed", seed)
    if min(counts.values()) < 1:
        raise InputError(f"{_told(counts)}: each split needs at least one sample")


def _draw_grouped(
    keys: list[str], counts: Mapping[str, int], generator: np.random.Generator, groups: Mapping[str, str]
) -> dict[str, list[str]]:
    """Of many orders of the groups, the first that fills all splits when each group goes where it still fits; or else
    the one that leaves the fewest places free."""
    members: dict[str, list[str]] = defaultdict(list)
    for key in keys:
        members[groups[key]].append(key)
    names = sorted(members)
    best, fewest = None, sum(counts.values()) + 1
    for _ in range(TRIES):
        splits: dict[str, list[str]] = {name: [] for name in counts}
        for place in generator.permutation(len(names)):
            group = members[names[place]]
            free = [name for name in counts if len(splits[name]) + len(group) <= counts[name]]
            if free:
                # As often into each as it has places: or else small groups alone would come into the last.
                places = np.array([counts[name] - len(splits[name]) for name in free])
                splits[generator.choice(free, p=places / places.sum())] += group
        left = sum(counts.values()) - sum(map(len, splits.values()))
        if left < fewest and all(splits.values()):
            best, fewest = splits, left
        if best is not None and fewest == 0:
            break
    if best is None:
        sizes = sorted(map(len, members.values()), reverse=True)
        raise InputError(
            f"splits {dict(counts)}: the {len(names)} groups (of {', '.join(map(str, sizes[:10]))} samples) leave one "
            "empty; raise the counts, or draw without groups"
        )
    return {name: sorted(split) for name, split in best.items()}


def draw_repetitions(
    keys: Iterable[str],
    counts: Mapping[str, int],
    seed: int,
    num_repetitions: int,
    groups: Mapping[str, str] | None = None,
) -> list[dict[str, list[str]]]:
    """Repeated random sub-sampling, as in the article: repetition k, from 0, is drawn with the seed `seed` + k."""
    keys = list(keys)
    return [draw_splits(keys, counts, seed + number, groups) for number in range(num_repetitions)]


def write_splits(path: Path, repetitions: list[dict[str, list[str]]], metadata: Mapping[str, object]) -> None:
    """A JSON file: {"format_version", **metadata, "repetitions": [{"train": [key, …], "val": …, "test": …}, …]}."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json_atomically(path, {"format_version": FORMAT_VERSION, **metadata, "repetitions": repetitions}, indent=1)


def read_splits(path: Path) -> list[dict[str, list[str]]]:
    """The repetitions of such a file. Raises InputError where it is none, or a key stands in two splits."""
    content = read_json(path)
    try:
        version, repetitions = content["format_version"], content["repetitions"]
        keys = [[key for split in splits.values() for key in split] for splits in repetitions]
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: holds no splits ({error!r}); remove it to draw again") from error
    if version != FORMAT_VERSION:
        raise InputError(f"{path}: format {version!r}, this version reads {FORMAT_VERSION}; update glioma-dist")
    for number, found in enumerate(keys):
        doubled = next((key for key, times in Counter(map(str, found)).items() if times > 1), None)
        if doubled is not None:
            raise InputError(f"{path}: repetition {number} has {doubled} twice; remove the file to draw again")
    return repetitions


def _told(counts: Mapping[str, int]) -> str:
    return f"splits {', '.join(f'{name} {count}' for name, count in counts.items())}"
