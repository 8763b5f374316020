"""Where devices lie in several slices, one axis of the mesh crosses the network between them."""

import dataclasses

import numpy as np
import pytest

from emojax.errors import UserError
from emojax.sae.state import make_mesh
from emojax.sae.train_config import TrainConfig


@dataclasses.dataclass(frozen=True)
class Device:
    """What JAX asks of a device to lay a mesh over it."""

    id: int
    slice_index: int
    platform: str = "gpu"
    device_kind: str = "fake"
    process_index: int = 0
    client: None = None


def slices_of(data: int, latent: int, devices: list[Device]) -> np.ndarray:
    """The slice of each place in the mesh."""
    settings = TrainConfig(batch_tokens=96, data_shards=data, latent_shards=latent)
    mesh = make_mesh(settings, 96, devices)
    assert mesh.axis_names == ("data", "latent")
    assert {device.id for device in mesh.devices.flat} == set(range(data * latent))
    return np.vectorize(lambda device: device.slice_index)(mesh.devices)


# JAX may name the devices of the slices in turns.
TWO = [Device(i, i % 2) for i in range(8)]


@pytest.mark.parametrize("data", [2, 4, 8])
def test_tokens_cross_the_network_and_latents_stay_within_a_slice(data):
    found = slices_of(data, 8 // data, TWO)
    assert (found == found[:, :1]).all()
    assert (found[: data // 2] == 0).all()
    assert (found[data // 2 :] == 1).all()


def test_latents_cross_where_there_are_no_shards_of_tokens_for_each_slice():
    assert slices_of(1, 8, TWO).tolist() == [[0, 0, 0, 0, 1, 1, 1, 1]]
    three = [Device(i, i // 4) for i in range(12)]
    assert slices_of(2, 6, three).tolist() == [[0, 0, 1, 1, 2, 2]] * 2


def test_a_mesh_that_the_slices_do_not_divide_or_that_leaves_some_idle_is_refused():
    three = [Device(i, i // 4) for i in range(12)]
    settings = TrainConfig(batch_tokens=96, data_shards=4, latent_shards=1)
    with pytest.raises(UserError, match="use them all"):
        make_mesh(settings, 96, three)
    four = [three[0], three[4], three[5], three[8]]
    with pytest.raises(UserError, match="over 3 slices; make one of the two a multiple of 3"):
        make_mesh(settings, 96, four)


def test_one_slice_keeps_the_order_of_the_devices():
    one = [Device(i, 0) for i in range(8)]
    assert (slices_of(2, 4, one) == 0).all()
