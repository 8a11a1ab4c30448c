"""What the intake says that a job takes: on its own tier, and on all above."""

from training_presets.estimates import estimate_cost
from training_presets.planner import plan_job
from training_presets.tier_estimates import tier_estimates
from training_schemas.jobs import TrainingJob, TrainingType
from training_worker.queue.intake import predict_on_tier, predict_queued


def test_a_jobs_own_tier_is_the_first_of_those_that_it_could_be_trained_on() -> None:
    """Both say the same of it."""
    job = TrainingJob(job_id="a", training_type=TrainingType.FLUX_LORA, dataset_path="/d", output_path="/o")
    plan = plan_job(job)

    told = [predict_on_tier(plan, one) for one in tier_estimates(plan)]

    assert [one.tier for one in told] == ["24gb", "40gb", "80gb"]
    assert told[0].predicted.card == predict_queued(plan, estimate_cost(plan)).card
    assert told[0].predicted.peak_vram_mib == predict_queued(plan, estimate_cost(plan)).peak_vram_mib
    assert all(one.predicted.cost_usd for one in told)
