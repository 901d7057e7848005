"""What a training would cost, worked out before it runs; measured figures are `runs`' business."""

from meqsum_lightning.plan.estimate import Plan, make_plan, with_rank
from meqsum_lightning.plan.sweep import SweepPlan, plan_sweep, render_sweep
from meqsum_lightning.plan.terminal import render

__all__ = ["Plan", "SweepPlan", "make_plan", "plan_sweep", "render", "render_sweep", "with_rank"]
