"""Call packages that make a network Bayesian: a Laplace approximation of the last layer, and a sampler."""

import warnings
from collections.abc import Mapping
from types import ModuleType

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.data import DataLoader, TensorDataset

from geoflow.outputs import outputs_of
from geoflow.population import itself
from geoflow.randomness import seed_global
from geoflow.spec import NetworkSpec
from geoflow.vector import pack, unpack
from geoflow.zoo.tasks import Task

PACKAGES = ("laplace", "posteriors")
LAPLACE_BATCH = 1000  # examples at once


def laplace_log_probs(
    network: nn.Module, spec: NetworkSpec, theta: Float[Tensor, " weights"], task: Task, x: Shaped[Tensor, "examples ..."], precision: float
) -> Float[Tensor, "1 examples classes"]:
    """Return what a last-layer Laplace approximation around a trained network says of the inputs.

    It has the full Gauss-Newton matrix of the last layer, the prior N(0, 1 / precision) for each of its weights, and the probit
    approximation of the predictive. Source: Daxberger et al. 2021, Laplace redux.
    """
    laplace = imported("laplace")
    trained = itself(network, unpack(spec, theta))
    fitted = laplace.Laplace(trained, "classification", subset_of_weights="last_layer", hessian_structure="full", prior_precision=precision)
    fitted.fit(DataLoader(TensorDataset(task.x_train, task.y_train), LAPLACE_BATCH))
    with torch.no_grad():
        said = torch.cat([fitted(part, pred_type="glm", link_approx="probit") for part in x.split(LAPLACE_BATCH)])
    return said.log()[None]


def sghmc_samples(
    network: nn.Module,
    spec: NetworkSpec,
    theta: Float[Tensor, " weights"],
    task: Task,
    *,
    count: int,
    batch: int,
    lr: float,
    precision: float,
    friction: float,
    burn_in: int,
    thin: int,
    generator: torch.Generator,
) -> Float[Tensor, "count weights"]:
    """Return samples of stochastic gradient Hamiltonian Monte Carlo, which begins at a trained network.

    The target is the posterior with the prior N(0, 1 / precision) for every weight. `burn_in` epochs come before the first sample, and
    `thin` epochs before each further one. Source: Chen, Fox and Guestrin 2014, Stochastic gradient Hamiltonian Monte Carlo.

    Raises FloatingPointError if the chain diverges.
    """
    posteriors = imported("posteriors")
    model, examples, kind = itself(network, unpack(spec, theta)), len(task.x_train), outputs_of(task.outputs)
    parameters = {name: value.detach() for name, value in model.named_parameters()}

    def log_posterior(params: Mapping[str, Tensor], rows: Tensor) -> tuple[Tensor, Tensor]:
        outputs = functional_call(model, params, (task.x_train[rows],))
        prior = -precision / 2 * sum(value.square().sum() for value in params.values())
        return prior / examples - kind.nll(outputs[None], task.y_train[rows]).mean(), torch.empty(0)

    seed_global(int(torch.randint(2**62, (), generator=generator)))
    chain = posteriors.sgmcmc.sghmc.build(log_posterior, lr=lr, alpha=friction, temperature=1 / examples, momenta=0.0)
    state, samples = chain.init(parameters), []
    for epoch in range(1, burn_in + thin * (count - 1) + 1):
        for rows in torch.randperm(examples, generator=generator)[: examples // batch * batch].split(batch):
            state, _ = chain.update(state, rows)
        if not all(value.isfinite().all() for value in state.params.values()):
            raise FloatingPointError(f"The chain of SGHMC diverged with lr={lr} in epoch {epoch}. Lower it.")
        if epoch >= burn_in and (epoch - burn_in) % thin == 0:
            samples.append(pack(spec, model.state_dict() | state.params))
    return torch.stack(samples)


def imported(name: str) -> ModuleType:
    """Import an optional package. Raises ImportError with the cure if it is missing."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # warnings at import are about the package's own future
            return __import__(name)
    except ImportError as error:
        raise ImportError(f'The package {name} is missing ({error}). Install it: pip install -e ".[baselines]"') from error
