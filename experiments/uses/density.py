"""Say how probable networks are under a saved flow."""

import torch
from configuration import ex
from lab.allowed import SAMPLER
from lab.collect import at_terminal, collect_own
from lab.draw import reopen
from lab.folder import sampled_with, write_json
from lab.options import plainly

from geoflow.density import density as density_under
from geoflow.density import log_orders
from geoflow.evaluation.densities import HELDOUT, compare, compared
from geoflow.evaluation.plots import plot_densities, save_figures
from geoflow.evaluation.tables import densities_table
from geoflow.randomness import randomness
from geoflow.sampling import sample
from uses.writing import folder_of


@ex.command
@plainly()
def density(_config, _run):
    """Say how probable held-out, fitted, generated, noised and averaged networks are under the flow of checkpoint=runs/3."""
    folder, seed, checkpoint = folder_of(_run), _config["seed"], _config["checkpoint"]
    flow, *_ = reopen(_config)
    zoo = collect_own(_config)
    drawn = {name: (SAMPLER | sampled_with(checkpoint, SAMPLER))[name] for name in ("solver", "steps", "start")}
    how = {name: _config[name] for name in ("solver", "steps", "probes", "sharpness")}
    new = sample(
        flow, _config["count"], **drawn, sharpness=how["sharpness"], generator=randomness(seed, "sample"), progress=at_terminal()
    ).cpu()
    sets = compared(flow, zoo.fitted.networks, zoo.heldout.networks, new, _config["count"], randomness(seed, "density"))
    found = {}
    for name, thetas in sets.items():
        print(f"{name.replace('_', ' ')}: {len(thetas)} networks")
        found[name] = density_under(flow, thetas, **how, generator=randomness(seed, "probes"), progress=at_terminal())
    rows = compare(found, flow.spec.weights)
    what = {name: _config[name] for name in ("task", "network", "flow", "count", "seed")} | how
    one = found[HELDOUT]
    what |= {"weights": flow.spec.weights, "dimension": one.dimension, "probes": one.probes, "log_orders": log_orders(flow.spec)}
    write_json(folder / "density.json", what | {"sets": rows})
    save_figures(folder / "figures", {"density": plot_densities({name: torch.tensor(one["values"]) for name, one in rows.items()})})
    print(densities_table(rows), f"Written to {folder}", sep="\n\n")
