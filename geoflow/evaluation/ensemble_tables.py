"""Print what was measured of ensembles."""

from collections.abc import Mapping
from itertools import product

from geoflow.evaluation.growing import columns_of
from geoflow.evaluation.tables import aligned


def ensembles_table(found: Mapping) -> str:
    """Return as plain text the scores of ensembles that posterior.json holds, for every second size, pool and kind of networks.

    The columns are those of the kind of outputs that `found["outputs"]` names. Without it they are those of classes. Two more columns for
    each other task have the AUROC of the entropy and of the information, which a single network lacks. Values are means over ensembles.

    >>> one = {"groups": 2} | {name: {"mean": 0.5, "std": 0.1} for name in columns_of("classes")}
    >>> print(ensembles_table({"ensembles": {"zoo": {"log": {"4": one}}}, "outside": {}}))
                     accuracy    NLL    ECE  Brier   area
    4 zoo, log pool     0.500  0.500  0.500  0.500  0.500
    """
    several, outside, columns = found["ensembles"], found["outside"], columns_of(found.get("outputs", "classes"))
    sizes = dict.fromkeys(size for pools in several.values() for by_size in pools.values() for size in by_size)
    pools = dict.fromkeys(pool for of in several.values() for pool in of)
    rows = []
    for size, pool, kind in product(list(sizes)[::2], pools, several):
        if size in several[kind][pool] and not (size == "1" and pool != next(iter(pools))):  # one network needs no pool
            told = [one[kind][pool]["auroc"][size] for one in outside.values()]
            values = [several[kind][pool][size][name] for name in columns]
            values += [one.get(name) for one in told for name in ("entropy", "information")]
            name = f"{size} {kind}" + (f", {pool} pool" if size != "1" else "")
            rows.append([name, *("-" if value is None else f"{value['mean']:.3f}" for value in values)])
    titles = [f"{other}: {name}" for other in outside for name in ("entropy", "information")]
    return aligned(rows, [*(column.title for column in columns.values()), *titles])


def rivals_table(found: Mapping[str, Mapping], outputs: str = "classes") -> str:
    """Return as plain text the scores and the cost of several ways to get an ensemble, which rivals.json holds.

    Scores are means over repeats. A way with several members has a row for each pool. A network alone, and a closed form, need none.

    >>> one = {name: {"mean": 0.5, "std": 0.1} for name in columns_of("classes")}
    >>> print(rivals_table({"SWAG": {"members": 64, "linear": one, "log": one, "seconds": 12.34}}))
                         accuracy            NLL            ECE          Brier  seconds
    SWAG            0.500 ± 0.100  0.500 ± 0.100  0.500 ± 0.100  0.500 ± 0.100     12.3
    SWAG, log pool  0.500 ± 0.100  0.500 ± 0.100  0.500 ± 0.100  0.500 ± 0.100     12.3
    """
    columns = {name: column for name, column in columns_of(outputs).items() if name != "area"}
    rows = [
        [name + (", log pool" if pool == "log" else ""), *(_spread(one[pool][score]) for score in columns), f"{one['seconds']:.3g}"]
        for name, one in found.items()
        for pool in ("linear", "log")
        if pool in one
    ]
    return aligned(rows, [*(column.title for column in columns.values()), "seconds"])


def _spread(value: Mapping[str, float]) -> str:
    return f"{value['mean']:.3f} ± {value['std']:.3f}"
