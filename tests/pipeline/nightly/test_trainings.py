"""What a night leaves of its trainings."""

from pipeline.nightly.trainings import Trained, remove_what_is_not_needed
from pipeline.site import Site


def test_of_a_passed_night_ray_s_state_goes_too_wherever_it_is(tmp_path):
    site = Site(tmp_path / "runs", "", "0", str(tmp_path / "store"))
    (site.output / "night-a/ray").mkdir(parents=True)
    for key in ("ray/night-a/state.json", "ray/night-ab/state.json"):  # on a cluster it lies in the store
        site.store.put_bytes(key, b"{}")
    remove_what_is_not_needed(site, [Trained("entry", 0, "night-a", "", {})], set())
    assert site.store.list("ray") == ["ray/night-ab/state.json"]
    assert not (site.output / "night-a").exists()
