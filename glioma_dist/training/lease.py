"""One training at a time writes to a URL: an object that says who, renewed as long as that training lives."""

from __future__ import annotations

import json
import platform
import threading
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from glioma_dist.data.shards.store import ChangedError, Store
from glioma_dist.errors import InputError, RunError, UnavailableError, one_line

LEASE = "lease.json"
MAX_LEASE_BYTES = 2**16
LEASE_SECONDS = 60.0
"""After so many seconds without a renewal a lease is stale: its training was killed."""
RENEWALS = 4
"""In that time."""


class Lease:
    """The lease of one training on its URL.

    On stores without conditional writes (all but S3) it cannot keep two trainings apart that begin at the same moment;
    a warning says so. store: of this lease alone. holder: who takes it; a holder that died may take it again at once.
    say: prints a warning.
    """

    def __init__(self, store: Store, holder: str, say: Callable[[str], None]) -> None:
        self._store, self._holder, self._say, self._seconds = store, holder, say, LEASE_SECONDS
        self._tag: str | None = None
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._renewed = 0.0
        self.lost: RunError | None = None
        """Set where another training has taken over."""

    def take(self) -> None:
        """Take it, or wait until that of a killed training is stale. Raises InputError where another one lives."""
        found = self._read()
        if found is not None and found[0].get("holder") != self._holder:
            found = self._wait_until_stale(found)
        try:
            self._put(None if found is None else found[1])
        except ChangedError:
            raise self._refusal((self._read() or ({}, ""))[0]) from None
        if not self._keeps_others_out():
            self._say(
                f"--out {self._store}: this store cannot keep two trainings apart; make sure that no other one writes "
                "there"
            )
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raises InputError where another training has the lease by now."""
        if self.lost is not None:
            raise self.lost

    def release(self) -> None:
        """Let go of it, so that the next training need not wait."""
        self._ended.set()
        if self._thread is None:
            return
        self._thread.join()
        if self.lost is None:
            try:
                self._store.until = time.monotonic() + self._seconds / RENEWALS
                found = self._read()
                if found is not None and found[0].get("holder") == self._holder:
                    self._store.remove([LEASE])
            except RunError:
                return  # it becomes stale

    def _wait_until_stale(self, found: tuple[dict, str]) -> tuple[dict, str] | None:
        """Watch another's lease for as long as it can still be renewed. Returns what is to be replaced."""
        seconds = found[0].get("seconds", self._seconds)
        seconds = min(max(float(seconds), 0.1), 600.0) if isinstance(seconds, int | float) else self._seconds
        # The other machine's clock may be wrong: it is watched for longer than from one renewal to the next.
        wait = min(max(seconds - _age(found[0]), 2 * seconds / RENEWALS), seconds)
        self._say(f"--out {self._store}: {_who(found[0])} holds it; waiting {wait:.0f} s to see whether it still runs")
        until = time.monotonic() + wait
        while time.monotonic() < until:
            time.sleep(min(seconds / RENEWALS / 2, max(0.0, until - time.monotonic())))
            now = self._read()
            if now is None:
                return None
            if now[0] != found[0]:
                raise self._refusal(now[0])
        return found

    def _refusal(self, lease: dict) -> InputError:
        return InputError(
            f"--out {self._store}: another training is writing there ({_who(lease)}); wait until it ends, or give "
            "another --out"
        )

    def _keeps_others_out(self) -> bool:
        """Whether the store refuses to write an object that is there to whoever expects none."""
        if not self._store.knows_conditions:
            return False
        try:
            self._store.replace(LEASE, self._content(), None)
        except ChangedError:
            return True
        found = self._read()
        self._tag = found[1] if found else None
        self._store.knows_conditions = False
        return False

    def _renew(self) -> None:
        while not self._ended.wait(self._seconds / RENEWALS):
            try:
                self._put(self._tag)
            except ChangedError:
                lease = (self._read_quietly() or ({}, ""))[0]
                self.lost = InputError(
                    f"--out {self._store}: another training has taken over ({_who(lease)}), because this one did not "
                    f"renew its lease for {time.monotonic() - self._renewed:.0f} s; nothing more is uploaded"
                )
                return
            except RunError:
                continue  # an upload finds out whether the store stays away

    def _put(self, tag: str | None) -> None:
        self._tag = self._store.replace(LEASE, self._content(), tag)
        self._renewed = time.monotonic()

    def _content(self) -> bytes:
        told = {
            "holder": self._holder,
            "host": platform.node(),
            "renewed": datetime.now(UTC).isoformat(),
            "seconds": self._seconds,
            "write": uuid.uuid4().hex,
        }
        return json.dumps(told).encode()

    def _read(self) -> tuple[dict[str, Any], str] | None:
        found = self._store.read_tagged(LEASE, MAX_LEASE_BYTES)
        if found is None:
            return None
        try:
            content = json.loads(found[0])
        except ValueError:
            content = {}
        return (content if isinstance(content, dict) else {}), found[1]

    def _read_quietly(self) -> tuple[dict[str, Any], str] | None:
        try:
            return self._read()
        except (InputError, UnavailableError):
            return None


def _who(lease: dict) -> str:
    return f"a training on {one_line(lease.get('host', 'an unknown machine'), 60)}"


def _age(lease: dict) -> float:
    """Seconds since the last renewal, by the two machines' clocks."""
    try:
        return max(0.0, (datetime.now(UTC) - datetime.fromisoformat(lease["renewed"])).total_seconds())
    except (KeyError, TypeError, ValueError):
        return 0.0
