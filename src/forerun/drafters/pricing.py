"""A plan that draws no more than pays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from forerun.protocols import DraftRow, GrowthPlan, Prices


def priced(plan: GrowthPlan, rows: Sequence[DraftRow], prices: Prices | None) -> GrowthPlan:
    """The plan with what its nodes and passes must be worth; as it is without prices."""
    if prices is None:
        return plan
    most = max(row.max_drafted for row in rows)
    of_nodes, of_pass = prices.of_nodes(len(rows), most), prices.of_pass(len(rows))
    return replace(plan, prices=of_nodes, pass_price=of_pass)
