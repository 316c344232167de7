"""What a source read, kept and left out, and why."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field

from maxk_lightning.types import Problem

NUM_EXAMPLES = 3
"Ids named per reason in the printed report."


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a report says of one row."""

    id: str
    "Of the problem."
    source: str = "-"
    "Where the problem comes from (a site, a file)."
    difficulty: str = "-"
    "In the source's own words."


@dataclass(kw_only=True)
class LoadReport:
    """Every row of a source is either kept or left out for one reason; nothing is dropped silently."""

    name: str
    "Of the source, for messages."
    kept: list[Facts] = field(default_factory=list)
    "Rows that became problems."
    left_out: dict[str, list[Facts]] = field(default_factory=dict)
    "Reason -> rows, in the order in which the reasons came up."
    shortened: dict[str, list[Facts]] = field(default_factory=dict)
    "Reason -> rows that were kept without some of their tests."

    @property
    def num_rows(self) -> int:
        """Rows read."""
        return len(self.kept) + sum(map(len, self.left_out.values()))

    def leave_out(self, facts: Facts, reason: str) -> None:
        """Count a row that did not become a problem."""
        self.left_out.setdefault(reason, []).append(facts)

    def keep(self, facts: Facts, reasons: Collection[str] = ()) -> None:
        """Count a row that became a problem, and why it lacks some of its tests."""
        self.kept.append(facts)
        for reason in reasons:
            self.shortened.setdefault(reason, []).append(facts)

    def drop(self, ids: Collection[str], reason: str) -> None:
        """Move problems that were kept so far to those left out."""
        dropped = set(ids)
        for facts in self.kept:
            if facts.id in dropped:
                self.leave_out(facts, reason)
        self.kept = [facts for facts in self.kept if facts.id not in dropped]
        kept = {reason: [facts for facts in rows if facts.id not in dropped] for reason, rows in self.shortened.items()}
        self.shortened = {reason: rows for reason, rows in kept.items() if rows}

    def extend(self, other: "LoadReport") -> None:
        """Add the rows of another report."""
        self.kept += other.kept
        for ours, theirs in ((self.left_out, other.left_out), (self.shortened, other.shortened)):
            for reason, rows in theirs.items():
                ours.setdefault(reason, []).extend(rows)

    def copy(self) -> "LoadReport":
        """The same counts; changing one changes nothing in the other."""
        copied = LoadReport(name=self.name)
        copied.extend(self)
        return copied

    def rename(self, name: Callable[[Facts], Facts]) -> None:
        """Replace the facts of every row."""
        self.kept = list(map(name, self.kept))
        self.left_out = {reason: list(map(name, rows)) for reason, rows in self.left_out.items()}
        self.shortened = {reason: list(map(name, rows)) for reason, rows in self.shortened.items()}

    def text(self) -> str:
        """A table by reason, then one by source and difficulty."""
        lines = [f"{self.name}: {self.num_rows} rows read, {len(self.kept)} kept"]
        for words, reasons in (("left out", self.left_out), ("shortened", self.shortened)):
            for reason, rows in reasons.items():
                names = ", ".join(facts.id for facts in rows[:NUM_EXAMPLES])
                rest = ", ..." if len(rows) > NUM_EXAMPLES else ""
                lines.append(f"  {words} {len(rows):>{15 - len(words)}}  {reason} ({names}{rest})")
        return "\n".join([*lines, *self._strata_lines()])

    def _strata_lines(self) -> list[str]:
        read = Counter((facts.source, facts.difficulty) for rows in self.left_out.values() for facts in rows)
        kept = Counter((facts.source, facts.difficulty) for facts in self.kept)
        read.update(kept)
        if list(read) == [("-", "-")]:
            return []
        rows = [(source, difficulty, str(n), str(kept[source, difficulty])) for (source, difficulty), n in read.items()]
        header = ("source", "difficulty", "read", "kept")
        widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
        return [_aligned(row, widths) for row in (header, *sorted(rows))]


def _aligned(row: Sequence[str], widths: Sequence[int]) -> str:
    source, difficulty, read, kept = row
    return f"  {source:<{widths[0]}}  {difficulty:<{widths[1]}}  {read:>{widths[2]}}  {kept:>{widths[3]}}"


def facts_of(problem: Problem) -> Facts:
    """The facts of a problem that was read already."""
    words = {key: str(problem.metadata[key]) for key in ("source", "difficulty") if key in problem.metadata}
    return Facts(id=problem.id, **words)


def report_of(source: object, problems: Iterable[Problem], name: str) -> LoadReport:
    """A copy of the report of a source that was loaded; a user's source without one kept all that it gave."""
    report = getattr(source, "report", None)
    if not isinstance(report, LoadReport):
        return LoadReport(name=name, kept=[facts_of(problem) for problem in problems])
    return report.copy()
