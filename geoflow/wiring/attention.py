"""Rules for attention: how queries, keys and values are tied."""

from dataclasses import replace

from geoflow.wiring.arithmetic import add, product_labels
from geoflow.wiring.entries import activation
from geoflow.wiring.labels import Operand, Value, length
from geoflow.wiring.ledger import MEASURES, Ledger
from geoflow.wiring.linear import contract
from geoflow.wiring.rules import require, rule


@rule("scaled_dot_product_attention")
def attention(
    ledger: Ledger, query, key, value, attn_mask: Operand = None, dropout: float = 0.0, is_causal: bool = False, scale: float | None = None,
    enable_gqa: bool = False,
) -> Value:  # fmt: skip
    """softmax(q k^T / sqrt(d)) v. The heads move together. The units of the values keep their own scales and signs."""
    require(dropout == 0, "dropout that is active in evaluation mode makes the network random")
    q, k, v = (activation(ledger, x) for x in (query, key, value))
    if enable_gqa:
        k, v = (_for_every_query(ledger, x, length(q.labels[-3])) for x in (k, v))
    contract(ledger, q.labels[-1], k.labels[-1], q.labels[:-2], k.labels[:-2])
    ledger.tie(k.labels[-2], v.labels[-2], "contraction", ("permutation",))
    ledger.summed(v.labels, -2)
    ledger.pin(*q.labels[:-1], *k.labels[:-1], v.labels[-2], symmetries=MEASURES)
    if is_causal:
        ledger.pin(q.labels[-2], k.labels[-2])
    scores = (*product_labels(ledger, q.labels[:-2], k.labels[:-2]), q.labels[-2], k.labels[-2])
    if attn_mask is not None:  # it moves with the scores along its axes that are longer than one
        scores = activation(ledger, add(ledger, Value(scores), attn_mask)).labels
        ledger.pin(*scores, symmetries=MEASURES)
    batch = product_labels(ledger, v.labels[:-2], scores[:-2])
    return Value((*batch, q.labels[-2], v.labels[-1]))


def _for_every_query(ledger: Ledger, x: Value, heads: int) -> Value:
    """Keys or values whose heads each serve several consecutive heads of queries."""
    *before, groups, places, units = x.labels
    times = heads // length(groups)
    wide = ledger.position(heads) if ledger.is_position(groups) else tuple(replace(s, repeat=s.repeat * times) for s in groups)
    ledger.maps.spread(wide)
    return Value((*before, wide, places, units))
