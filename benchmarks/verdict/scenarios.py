"""The scenarios: sizes, truths, what is counted, and what the documents promise of it."""

from collections.abc import Sequence

from pairs import (
    PairedDraw,
    broken,
    fails_in,
    faint,
    gone,
    margin_each,
    noisy,
    partly,
    turned,
    whole,
)
from rule import MARGIN, NOT_REMOVED, REMOVED
from scores import (
    DIGITS,
    FULL,
    KIT_150,
    KIT_600,
    SIZES,
    SMALL,
    STRONG,
    Draw,
    Size,
    against,
    by_training,
    classes_apart,
    flipped,
    hidden_part,
    kept,
    mirrored,
    one_class,
    ranked,
    retrained,
    shifted,
    single_class,
    tail_alone,
    trainings_apart,
    widened,
)
from simulation import Scenario

ERROR, GAIN = "≤ 5 %", "≥ 90 %"


def cheats() -> list[Scenario]:
    """Truths in which the poison is left."""
    everywhere: list[tuple[str, Draw]] = [
        ("a fifth left of each mean", shifted(lambda size: MARGIN * size.rank)),
        ("a fifth left of GUS alone", shifted(lambda size: MARGIN * size.rank, scores="gus")),
        ("a fifth left of the rank score alone", shifted(lambda size: MARGIN * size.rank, scores="rank")),
        ("a fifth left of each, turned round", shifted(lambda size: -MARGIN * size.rank)),
        ("a fifth left of the mean square, no mean", widened),
        ("a fifth left of the rank score's tail alone", tail_alone(MARGIN)),
        ("a fifth left of each, against the initial scores (correlation −0.3)", against(-0.3)),
        ("the same, of GUS alone, correlation −1", against(-1.0, "gus")),
        ("the same, of the rank score alone, correlation −1", against(-1.0, "rank")),
        ("20 % of the poisons kept whole", kept(0.2)),
        ("25 % kept whole", kept(0.25)),
        ("20 % kept, the rest pushed away", kept(0.2, pushed=True)),
        ("10 % kept at 1.9, the rest pushed away", kept(0.1, to=1.9, pushed=True)),
        ("half kept, half mirrored", mirrored),
        ("3 % kept at 2.5", kept(0.03, to=2.5)),
        ("two classes of ten kept whole", one_class),
        ("one class of ten kept whole", single_class),
        ("classes ± 0.25", classes_apart(0.25)),
        ("classes ± 0.5", classes_apart(0.5)),
        ("sign turned round", flipped),
        ("GUS kept, rank score clean", kept(1.0, scores="gus")),
        ("rank score kept, GUS clean", kept(1.0, scores="rank")),
        ("30 % kept, half of these hidden", hidden_part(0.3, 0.5)),
        ("20 % kept and hidden", hidden_part(0.2, 1.0)),
    ]  # fmt: skip
    found = [
        Scenario(name, str(size), REMOVED, promise(name, size), (size, [draw]))
        for size in (*SIZES, STRONG)
        for name, draw in everywhere
        if size is not STRONG or "tail" not in name  # no such scores there
    ]
    for size in (DIGITS, SMALL):
        for name, draw in [
            ("trainings ± D", trainings_apart(1.0)),
            ("trainings ± D/2", trainings_apart(0.5)),
            ("a third of the trainings keeps 60 %: 20 %", by_training(1 / 3, 0.2, fixed=True)),
            ("a third of the trainings keeps 90 %: 30 %", by_training(1 / 3, 0.3, fixed=True)),
        ]:
            found.append(Scenario(name, str(size), REMOVED, ERROR, (size, [draw])))
        for mean in (0.2, 0.3):
            draw = by_training(1 / 3, mean, fixed=False)
            name = f"each training keeps {3 * mean:.0%} with chance 1/3: {mean:.0%}"
            found.append(
                Scenario(
                    f"{name}, of these trainings",
                    str(size), "REMOVED, a third or more left", ERROR, (size, [draw]), given=True,
                )
            )  # fmt: skip
            found.append(
                Scenario(f"{name}, of trainings to come", str(size), REMOVED, "—", (size, [draw]))
            )
        eight = [shifted(lambda size: MARGIN * size.rank, scores="rank")] * 8
        name = "eight, each leaves a fifth of the rank score"
        found.append(Scenario(name, str(size), "any REMOVED", ERROR, (size, eight)))
    return found


def unrested() -> list[Scenario]:
    """A fifth left of GUS alone, by eight: where no verdict rests on GUS it only blocks, at α for each."""
    eight = [shifted(lambda size: MARGIN * size.rank, scores="gus")] * 8
    name = "eight, each leaves a fifth of GUS"
    return [
        Scenario(name, str(size), "any REMOVED", "—", (size, eight)) for size in (DIGITS, SMALL)
    ]


def promise(name: str, size: Size) -> str:
    """What is promised; "—" where too few poisons cannot tell, a limit that the manual states."""
    weak = {
        # no verdict rests on GUS, or on the spread, there
        "a fifth left of GUS alone": (KIT_150, FULL),
        # scores against the initial ones: the stated level takes the two models' errors for independent
        "the same, of GUS alone, correlation −1": (*SIZES, STRONG),
        "the same, of the rank score alone, correlation −1": (*SIZES, STRONG),
        "a fifth left of the mean square, no mean": (KIT_150, FULL),
        "a fifth left of the rank score's tail alone": (DIGITS, KIT_150, FULL),
        "20 % kept, the rest pushed away": (KIT_150, FULL),
        "10 % kept at 1.9, the rest pushed away": (SMALL, KIT_600, KIT_150, FULL),
        "3 % kept at 2.5": (SMALL, KIT_600, KIT_150, FULL, STRONG),
        "one class of ten kept whole": (KIT_150, FULL, STRONG),
        "classes ± 0.25": (KIT_150, FULL, KIT_600, SMALL, STRONG),
        "classes ± 0.5": (KIT_150, STRONG),
    }
    return "—" if size in weak.get(name, ()) else ERROR


def independent() -> list[Scenario]:
    """Truths in which nothing is left, by scores."""
    found = []
    for poisons in (2, 5, 20, 100, 600, 4200):
        for draws in (1, 3, 19, 199):
            for family in (1, 8):
                if family == 8 and draws in (3, 19):
                    continue
                size = Size("null", 1, poisons, 0, 0, 1, classes=min(10, max(1, poisons // 2)))
                unlearners = [ranked(draws)] * family
                found.append(
                    Scenario(
                        f"independent, K = {draws}, family of {family}",
                        f"1 × {poisons:,}", "any NOT REMOVED", ERROR, (size, unlearners),
                        initial=retrained, answer=NOT_REMOVED,
                    )
                )  # fmt: skip
    for family in (1, 8):
        size = Size("null", 10, 42, 0, 0, 1)
        found.append(
            Scenario(
                f"independent, K = 19, family of {family}",
                "10 × 42", "any NOT REMOVED", ERROR, (size, [ranked(19)] * family),
                initial=retrained, answer=NOT_REMOVED,
            )
        )  # fmt: skip
    return found


def acquittals() -> list[Scenario]:
    """Truths in which nothing is left, and REMOVED is deserved: by scores, and in pairs."""

    def gets(name: str, size: Size, draws: Sequence[Draw], promised: str = GAIN) -> Scenario:
        return Scenario(name, str(size), REMOVED, promised, (size, draws), first_only=True)

    same: Draw = kept(1.0)
    found = [
        gets("retrained, alone", DIGITS, [retrained]),
        gets("retrained, beside seven that keep all", DIGITS, [retrained] + [same] * 7),
        gets("retrained, alone", SMALL, [retrained]),
        gets("retrained, beside seven that keep all", SMALL, [retrained] + [same] * 7),
        gets("retrained, alone", KIT_600, [retrained]),
        gets("retrained, alone", KIT_150, [retrained]),
        gets("retrained, alone", STRONG, [retrained]),
        gets("retrained, alone", FULL, [retrained]),
        gets("retrained, beside seven that keep all", FULL, [retrained] + [same] * 7, "—"),
    ]
    for works in (1.0, 0.95, 0.9):
        found += [
            Scenario(
                f"truly removed, attack works in {works:.0%}, alone",
                f"{trainings} trainings", REMOVED,
                GAIN if trainings > 16 or works >= 0.95 else "—",
                paired=(trainings, gone(works)), first_only=True,
            )
            for trainings in (16, 24)
        ]  # fmt: skip
        found += [
            Scenario(
                f"truly removed, attack works in {works:.0%}, beside seven that keep all",
                f"{trainings} trainings", REMOVED,
                GAIN if trainings >= 28 and works >= 0.95 else "—",
                paired=(trainings, gone(works, 8)), first_only=True,
            )
            for trainings in (24, 28, 32)
        ]  # fmt: skip
    return found


def paired() -> tuple[list[Scenario], list[Scenario]]:
    """In pairs: false REMOVED, and false NOT REMOVED."""
    cheating: list[tuple[str, PairedDraw, str]] = [
        (f"works in {works:.0%}, fails in {share:.0%} of these", fails_in(works, share), REMOVED)
        for works in (1.0, 0.8, 0.5)
        for share in (0.2, 0.25, 1 / 3)
    ]
    cheating += [
        ("works in 90 %, eight fail in 25 % of these", fails_in(0.9, 0.25, 8), "any REMOVED"),
        ("fails in 20 %, either way", fails_in(1.0, 0.2, sides=True), REMOVED),
        ("fails in 33 %, either way", fails_in(1.0, 1 / 3, sides=True), REMOVED),
        ("49 % left in 41 % of the trainings", partly(0.41, 0.49), REMOVED),
        ("40 % left in half of the trainings", partly(0.5, 0.4), REMOVED),
        ("noisy before (0.40 ± 0.45), 0.08 ± 0.02 left", noisy, REMOVED),
        ("a fifth left in each", margin_each(), REMOVED),
        ("a fifth left in each, turned round", margin_each(-1.0), REMOVED),
        ("sign turned round", turned, REMOVED),
        ("half of the trainings keep all, half are turned round", whole, REMOVED),
    ]
    wrong = [
        Scenario(name, f"{s} trainings", counted, ERROR, paired=(s, draw))
        for name, draw, counted in cheating
        for s in (4, 6, 8, 16, 24, 32)
    ]
    innocent: list[tuple[str, PairedDraw, int]] = [
        (f"outcomes 0 or 1, chance {chance:.0%}", broken(chance, family), family)
        for chance in (0.05, 0.2, 0.5)
        for family in (1, 8)
    ]
    innocent += [("small differences", faint(family), family) for family in (1, 8)]
    convicted = [
        Scenario(
            f"{name}, family of {family}", f"{s} trainings", "any NOT REMOVED", ERROR,
            paired=(s, draw), answer=NOT_REMOVED,
        )
        for name, draw, family in innocent
        for s in (2, 4, 6, 8, 16, 24, 32)
    ]  # fmt: skip
    return wrong, convicted
