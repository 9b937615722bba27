"""Print the scores of a run as aligned plain text."""

from collections.abc import Iterable, Iterator, Mapping

from geoflow.outputs import Outputs, outputs_of

SETS = ("zoo", "generated", "trained")
DIVERSITY = {"distance": ".4g", "disagreement": ".4f"}
DENSITIES = {"networks": "d", "median": ".1f", "per_weight": ".3f", "std": ".1f", "standard_error": ".1f", "auroc": ".3f"}


def metrics_table(metrics: Mapping) -> str:
    """Return the scores of metrics.json as aligned plain text.

    The rows are the zoo (if it is there), the generated networks, each baseline and the ensembles. An ensemble averages probabilities. With
    `log_pool`, a second row has the scores for averaged log-probabilities. Ensembles are named zoo, generated or trained. A suffix behind
    "_" may tell several apart. With "architectures" or "own" there is a group of rows for each architecture, below its label. The columns
    are those of the kind of outputs that `metrics["outputs"]` names. Without it they are those of classes.

    >>> one = {"accuracy": {"mean": 0.9, "std": 0.01}, "nll": {"mean": 0.3, "std": 0.02}, "ece": {"mean": 0.05, "std": 0.0}}
    >>> print(metrics_table({"zoo": one, "generated": one, "baselines": {}, "ensemble": {}}))
                    accuracy            NLL            ECE
    zoo        0.900 ± 0.010  0.300 ± 0.020  0.050 ± 0.000
    generated  0.900 ± 0.010  0.300 ± 0.020  0.050 ± 0.000
    """
    return aligned(rows_of(metrics), titles_of(kind_of(metrics)))


def scores_table(scores: Mapping[str, Mapping], outputs: str = "classes") -> str:
    """Return the scores of named sets of networks as plain text. The scores come from `summary`.

    `outputs` names the kind of outputs, a row of OUTPUTS. For classes the scores are accuracy, NLL and ECE.

    >>> one = {"accuracy": {"mean": 0.9, "std": 0.01}, "nll": {"mean": 0.3, "std": 0.02}, "ece": {"mean": 0.05, "std": 0.0}}
    >>> print(scores_table({"8 steps": one}))
                  accuracy            NLL            ECE
    8 steps  0.900 ± 0.010  0.300 ± 0.020  0.050 ± 0.000
    """
    kind = outputs_of(outputs)
    return aligned(_single(scores, kind), titles_of(kind))


def new_and_good_table(found: Mapping[str, Mapping], outputs: str = "classes") -> str:
    """Return the scores, the novelty ratio and the share of copies of named sets of networks as plain text.

    `outputs` names the kind of outputs, a row of OUTPUTS. For classes the scores are accuracy, NLL and ECE.

    >>> one = {"accuracy": {"mean": 0.9, "std": 0.01}, "nll": {"mean": 0.3, "std": 0.02}, "ece": {"mean": 0.05, "std": 0.0}}
    >>> print(new_and_good_table({"16 steps": one | {"novelty": 0.91, "copies": 0.02}}))
                   accuracy            NLL            ECE  novelty  copies
    16 steps  0.900 ± 0.010  0.300 ± 0.020  0.050 ± 0.000     0.91    2.0%
    """
    kind = outputs_of(outputs)
    both = zip(_single(found, kind), found.values(), strict=True)
    rows = ([*cells, number(one["novelty"], ".2f"), number(one["copies"], ".1%")] for cells, one in both)
    return aligned(rows, [*titles_of(kind), "novelty", "copies"])


def diversity_table(found: Mapping[str, Mapping[str, float | None]], outputs: str = "classes") -> str:
    """Return as plain text how far apart two networks of each set are, in their weights and in their predictions.

    `outputs` names the kind of outputs, a row of OUTPUTS. For classes, predictions are apart where they are different classes.

    >>> print(diversity_table({"zoo": {"distance": 30.5, "disagreement": 0.0421}}))
         distance  disagreement
    zoo      30.5        0.0421
    """
    return aligned(apart_rows(found), ["distance", outputs_of(outputs).apart.title])


def densities_table(found: Mapping[str, Mapping]) -> str:
    """Return as plain text what `geoflow.evaluation.densities.compare` found, with the log-densities in nats.

    >>> one = {"networks": 8, "median": 1012.31, "per_weight": 1.332, "std": 21.4, "standard_error": 1.2, "auroc": 0.5}
    >>> print(densities_table({"heldout": one, "mean_network": one | {"networks": 1, "std": None}}))
                  networks  median  per weight   std  standard error  AUROC
    heldout              8  1012.3       1.332  21.4             1.2  0.500
    mean_network         1  1012.3       1.332     -             1.2  0.500
    """
    rows = ([name, *(number(one[key], form) for key, form in DENSITIES.items())] for name, one in found.items())
    titles = ("AUROC" if key == "auroc" else key.replace("_", " ") for key in DENSITIES)
    return aligned(rows, titles)


def levels_table(found: Mapping, outputs: str = "classes") -> str:
    """Return as plain text which levels of the NLL on training data were asked for, and what the networks reached.

    `outputs` names the kind of outputs, a row of OUTPUTS. For classes the scores are accuracy and NLL.

    >>> one = {"accuracy": {"mean": 0.9, "std": 0.01}, "nll": {"mean": 0.3, "std": 0.02}}
    >>> level = {"asked": 0.2, "reached": {"mean": 0.21, "std": 0.01}, "test": one}
    >>> print(levels_table({"levels": [level], "rank_correlation": 0.9}))
    asked NLL, training        reached  accuracy, test      NLL, test
    0.200                0.210 ± 0.010   0.900 ± 0.010  0.300 ± 0.020
    rank correlation of asked and reached: 0.90
    """
    kind = outputs_of(outputs)
    first, *titles = levels_titles(kind)
    return f"{aligned(levels_rows(found, kind), titles, first)}\nrank correlation of asked and reached: {found['rank_correlation']:.2f}"


def levels_titles(kind: Outputs) -> list[str]:
    """Return the titles of the columns of `levels_rows`."""
    return ["asked NLL, training", "reached", *(f"{kind.columns[name].title}, test" for name in kind.main)]


def aligned(rows: Iterable[list[str]], titles: Iterable[str], first: str = "") -> str:
    """Return rows as plain text, each with a name and cells. The columns stand below their titles."""
    rows = [[first, *titles], *rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]).rstrip() for row in rows]
    return "\n".join(lines)


def rows_of(metrics: Mapping) -> Iterator[list[str]]:
    """Yield the name and the scores of every set of networks, with a group for each architecture if there are several."""
    kind = kind_of(metrics)
    if "architectures" not in metrics:
        yield from _group(metrics, kind)
    for label, one in {**metrics.get("architectures", {}), **metrics.get("own", {})}.items():
        yield [f"{label}:", *[""] * len(kind.columns)]
        yield from _group(one, kind)


def _group(metrics: Mapping, kind: Outputs) -> Iterator[list[str]]:
    yield from _single({name: metrics[name] for name in SETS if name in metrics} | dict(metrics["baselines"]), kind)
    for name, scores in metrics["ensemble"].items():
        for one, how in ((scores, ""), (scores.get("log_pool"), ", log pool")):
            if one:
                numbers = (f"{one[column]:.3f}" + " " * len(" ± 0.000") for column in kind.columns)
                yield [f"ensemble of {scores['n']} {name.split('_')[0]}{how}", *numbers]


def _single(scores: Mapping[str, Mapping], kind: Outputs) -> Iterator[list[str]]:
    for name, one in scores.items():
        yield [name.replace("_", " "), *(f"{one[c]['mean']:.3f} ± {one[c]['std']:.3f}" for c in kind.columns)]


def levels_rows(found: Mapping, kind: Outputs) -> Iterator[list[str]]:
    """Yield for each level what was asked for, and what was reached."""
    for one in found["levels"]:
        scores = (one["reached"], *(one["test"][name] for name in kind.main))
        yield [f"{one['asked']:.3f}", *(f"{score['mean']:.3f} ± {score['std']:.3f}" for score in scores)]


def apart_rows(found: Mapping[str, Mapping[str, float | None]]) -> list[list[str]]:
    """Return for each set of networks how far apart two of them are."""
    return [[name, *(number(one[key], form) for key, form in DIVERSITY.items())] for name, one in found.items()]


def kind_of(metrics: Mapping) -> Outputs:
    """Return the kind of outputs of the networks that were scored. All architectures of a flow have the same."""
    one = next(iter(metrics.get("architectures", {}).values()), metrics)
    return outputs_of(one.get("outputs", "classes"))


def titles_of(kind: Outputs) -> list[str]:
    """Return the titles of the columns of `rows_of`."""
    return [column.title for column in kind.columns.values()]


def number(value: float | None, form: str) -> str:
    """Return a number in a format, or a dash in place of None."""
    return "-" if value is None else format(value, form)
