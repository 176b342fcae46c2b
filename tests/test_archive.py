"""A checkpoint's file: what is written is read back to the bit, and what is not that is refused."""

import random
import warnings
from collections import OrderedDict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ncsn.model.checkpoint_file import SEAL, DamagedError, check_seal, digest, read, write

from runs import same

CONTENT = {"state_dict": {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor([True])}, "step": 3, "text": "x" * 5000}


@pytest.fixture
def file(tmp_path):
    write(CONTENT, tmp_path / "a.ckpt")
    return tmp_path / "a.ckpt"


def test_what_is_written_is_read_and_torch_reads_it_too(file):
    for content in (read(file), torch.load(file, weights_only=True)):
        assert content.keys() == {*CONTENT, "format"}
        assert content["step"] == 3
        assert all(torch.equal(content["state_dict"][name], value) for name, value in CONTENT["state_dict"].items())


def test_the_checksum_is_of_all_that_is_before_it(file, tmp_path):
    content = file.read_bytes()
    body, _, checksum = content.partition(SEAL)
    (tmp_path / "body").write_bytes(body)
    assert digest(tmp_path / "body").encode() == checksum
    assert len(content) == len(body) + len(SEAL) + 64


@settings(max_examples=150)
@given(data=st.data())
def test_any_flipped_bit_and_any_lost_end_is_damage(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "flipped.ckpt"
    write(CONTENT, path)
    content = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content[place] ^= 1 << data.draw(st.integers(0, 7))
    else:
        del content[place:]
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"flipped\.ckpt") as refusal:
        read(path)
    assert len(str(refusal.value).splitlines()) == 1


def test_a_file_without_a_checksum_says_how_to_write_one(tmp_path):
    torch.save(CONTENT, tmp_path / "plain.ckpt")
    with pytest.raises(DamagedError, match=r"has no checksum .* Trainer\(plugins=\[ncsn.DurableCheckpointIO\(\)\]\)"):
        read(tmp_path / "plain.ckpt")


def test_a_file_that_lightning_wrote_is_read_with_a_warning_and_any_damage_of_its_parts_is_noticed(tmp_path):
    """Its zip has a checksum of each part; what is between the parts holds nothing."""
    path, content = tmp_path / "plain.ckpt", CONTENT | {"pytorch-lightning_version": "2.6.6"}
    torch.save(content, path)
    whole, dice = path.read_bytes(), random.Random(0)
    with pytest.warns(
        UserWarning, match=r"plain\.ckpt has no checksum at its end, as Lightning wrote it; Trainer\(plu"
    ):
        assert same(read(path), content)
    refusals = []
    for _ in range(100):
        damaged, place = bytearray(whole), dice.randrange(len(whole))
        damaged[place] ^= 1 << dice.randrange(8)
        path.write_bytes(damaged if dice.random() < 0.8 else damaged[:place])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                assert same(read(path), content)
            except ValueError as error:
                refusals.append(str(error))
    assert len(refusals) > 50
    assert not any("\n" in line for line in refusals)
    content["text"] += "y"
    write(content, path)
    path.write_bytes(path.read_bytes()[: -len(SEAL) - 64])  # the seal is lost
    with pytest.raises(DamagedError, match="has no checksum at its end: it is damaged"):
        read(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"format": 2}, "is of format 2, this version reads 1"),
        ({"format": None}, "is of format None"),
    ],
)
def test_another_version_is_refused_and_is_no_damage(tmp_path, content, message):
    torch.save(content, tmp_path / "a.ckpt")
    checksum = digest(tmp_path / "a.ckpt")
    with (tmp_path / "a.ckpt").open("ab") as end:
        end.write(SEAL + checksum.encode())
    assert check_seal(tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match=message) as refusal:
        read(tmp_path / "a.ckpt")
    assert not isinstance(refusal.value, DamagedError)


@pytest.mark.parametrize("section", ["state_dict", "current_model_state", "optimizer_states"])
@pytest.mark.parametrize("number", [torch.nan, torch.inf, 1e300])
def test_weights_that_are_not_finite_in_32_bits_are_refused(tmp_path, section, number):
    write({section: {"a": [torch.tensor([1.0, number], dtype=torch.float64)]}}, tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match=f"has numbers in its {section} that are not finite in 32 bits"):
        read(tmp_path / "a.ckpt")


@pytest.mark.parametrize("step", [-3, 1.5, "7", True])
def test_a_step_that_is_none_is_refused(tmp_path, step):
    write({"global_step": step}, tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match=f"a.ckpt has a global_step of {step!r}, expected an integer from 0"):
        read(tmp_path / "a.ckpt")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("http://a.b/c.ckpt", "is an address, and only local files are read"),
        ("s3://a/c.ckpt", "is an address"),
        (".", "is a folder"),
        ("/dev/null", "there is no file /dev/null"),
        ("no.ckpt", "there is no file no.ckpt"),
    ],
)
def test_what_is_no_file_is_refused(path, message):
    with pytest.raises(ValueError, match=message):
        read(path)


def test_a_disk_that_takes_nothing_leaves_what_was_there(file, monkeypatch):
    before = file.read_bytes()

    def full(*_):
        raise RuntimeError("[enforce fail at inline_container.cc:672]")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match=r"cannot write .*a\.ckpt: is the disk full\?"):
        write(CONTENT, file)
    assert file.read_bytes() == before
    assert [path.name for path in file.parent.iterdir()] == ["a.ckpt"]


def test_a_bit_that_is_flipped_in_the_name_of_a_function_is_damage_and_no_code(file):
    content = bytearray(file.read_bytes())
    content[content.index(b"_rebuild_tensor_v2")] ^= 1
    file.write_bytes(content)
    with pytest.raises(DamagedError, match="is damaged: it does not match its checksum"):
        read(file)


@pytest.mark.parametrize("attribute", ["values", "_metadata", "__len__"])
def test_attributes_that_hide_the_methods_of_a_dictionary_are_dropped(tmp_path, attribute):
    weights = OrderedDict(a=torch.tensor([torch.nan]))
    setattr(weights, attribute, OrderedDict)
    write({"state_dict": weights}, tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match="has numbers in its state_dict that are not finite"):
        read(tmp_path / "a.ckpt")
    weights["a"] = torch.ones(1)
    write({"state_dict": weights}, tmp_path / "a.ckpt")
    assert type(read(tmp_path / "a.ckpt")["state_dict"]) is dict


@pytest.mark.parametrize("value", [OrderedDict, torch.Size, [[OrderedDict]], {OrderedDict: 1}])
def test_a_class_is_no_value(tmp_path, value):
    write({"a": value}, tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match="holds a value of type type, which is not read"):
        read(tmp_path / "a.ckpt")


@pytest.mark.parametrize("version", [torch.ones(2), True, 1.0, "x" * 3_000_000])
def test_a_version_is_a_number(tmp_path, monkeypatch, version):
    monkeypatch.setattr("ncsn.model.checkpoint_file.FORMAT", version)
    write({}, tmp_path / "a.ckpt")
    monkeypatch.undo()
    with pytest.raises(ValueError, match="is of format") as refusal:
        read(tmp_path / "a.ckpt")
    assert len(str(refusal.value)) < 200


def test_the_same_content_gives_the_same_bytes(tmp_path):
    for name in ("a.ckpt", "b.ckpt"):
        write(CONTENT, tmp_path / name)
    assert (tmp_path / "a.ckpt").read_bytes() == (tmp_path / "b.ckpt").read_bytes()
