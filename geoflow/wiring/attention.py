"""Wire attention: queries meet keys, values pass."""

from geoflow.wiring.arithmetic import product_labels
from geoflow.wiring.entries import activation, broadcast
from geoflow.wiring.labels import Operand, Value, length
from geoflow.wiring.ledger import MEASURES, Ledger
from geoflow.wiring.linear import contract
from geoflow.wiring.rules import require, rule


@rule("scaled_dot_product_attention")
def attention(ledger: Ledger, query, key, value, mask: Operand = None, dropout: float = 0.0, *_: object, **__: object) -> Value:
    """softmax(q k^T / sqrt(d)) v: heads move together, and the values keep their own factors and signs."""
    require(dropout == 0, "dropout that is active in evaluation mode makes the network random")
    q, k, v = (activation(ledger, x) for x in (query, key, value))
    require(mask is None or ledger.is_position(sum(broadcast(ledger, mask).labels, ())), "a mask that is computed")
    contract(ledger, q.labels[-1], k.labels[-1])
    ledger.tie(k.labels[-2], v.labels[-2], ("permutation",))
    ledger.pin(*q.labels[:-1], *k.labels[:-1], v.labels[-2], symmetries=MEASURES)
    if mask is not None:
        ledger.pin(q.labels[-2], k.labels[-2], *q.labels[:-2])
    batch = product_labels(ledger, v.labels[:-2], product_labels(ledger, q.labels[:-2], k.labels[:-2]))
    assert all(length(label) == size for label, size in zip(batch, ledger.shape[:-2], strict=True))
    return Value((*batch, q.labels[-2], v.labels[-1]))
