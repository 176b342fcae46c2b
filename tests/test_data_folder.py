"""Folders of images of any kind, and what is wrong with some."""

import os
import re
import socket
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from ncsn.data import ImageFolder, same_images
from ncsn.data.folder import FileImages
from PIL import Image

from test_data import in_training


def write(file: Path, colour, size=(8, 8), mode="RGB", **settings):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(file, **settings)


@pytest.fixture
def folder(tmp_path):
    """Examples of several formats, sizes and colours, in two class folders."""
    write(tmp_path / "red" / "a.png", (255, 0, 0), (20, 10))
    write(tmp_path / "red" / "deep" / "b.JPG", (255, 0, 0), (9, 9))
    write(tmp_path / "red" / "c.bmp", (255, 0, 0), (8, 30))
    write(tmp_path / "grey" / "d.gif", 128, mode="L")
    write(tmp_path / "grey" / "e.tiff", (128, 128, 128, 255), mode="RGBA")
    write(tmp_path / "grey" / "f.webp", (128, 128, 128), lossless=True)
    (tmp_path / "grey" / "notes.txt").write_text("not an image")
    write(tmp_path / "grey" / ".hidden.png", (0, 0, 0))
    return tmp_path


def test_flips_are_drawn_for_each_example_and_in_training_only(folder):
    data = ImageFolder(str(folder), size=2, flip=True)
    pixels = torch.zeros(1000, 3, 2, 2, dtype=torch.uint8)
    pixels[..., 0] = 255
    x, _ = in_training(data).on_after_batch_transfer((pixels, torch.zeros(1000)), 0)
    mirrored = x[:, 0, 0, 1] == 1
    assert 420 < mirrored.sum() < 580
    assert torch.equal(x[mirrored].flip(-1), x[~mirrored][:1].expand_as(x[mirrored]))
    x, _ = in_training(data, training=False).on_after_batch_transfer((pixels, torch.zeros(1000)), 0)
    assert (x[..., 0] == 1).all()


def test_a_folder_is_read_with_its_classes(folder):
    data = ImageFolder(str(folder), size=8, labels=True, held_out=0.3, batch_size=2)
    assert (data.shape, data.classes, data.class_names) == ((3, 8, 8), 2, ["grey", "red"])
    data.setup()
    assert (len(data.splits["train"]), len(data.splits["val"])) == (4, 2)
    for split in data.splits.values():
        for pixels, label in zip(*split[range(len(split))], strict=True):
            colour = [255, 0, 0] if label == 1 else [128, 128, 128]
            assert (pixels.flatten(1).float().mean(1) - torch.tensor(colour)).abs().max() < 3


def test_streamed_images_are_the_held_ones(folder):
    held, streamed = (ImageFolder(str(folder), size=6, channels=1, memory=memory, batch_size=2) for memory in (1, 0))
    for data in (held, streamed):
        in_training(data).setup()
    assert type(held.splits["train"]) is not type(streamed.splits["train"])
    for one, other in zip(held.train_dataloader(), streamed.train_dataloader(), strict=True):
        assert torch.equal(one[0], other[0])


def test_an_image_is_turned_upright_resized_and_cropped(tmp_path):
    image = Image.new("RGB", (40, 20))
    image.paste((255, 255, 255), (0, 0, 20, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees: the white half is on top
    image.save(tmp_path / "a.jpg", exif=exif, quality=95)
    image.save(tmp_path / "b.jpg", quality=95)
    images = FileImages([tmp_path / "a.jpg", tmp_path / "b.jpg"], torch.zeros(2), channels=1, size=10)
    turned, plain = images[[0, 1]][0][:, 0].float()
    assert turned[:4].mean() > 240
    assert turned[-4:].mean() < 15
    # The middle square of the image: white on the left, black on the right.
    assert plain[:, :4].mean() > 240
    assert plain[:, -4:].mean() < 15


@pytest.mark.parametrize("channels", [1, 3])
def test_greys_of_16_bits_are_scaled(tmp_path, channels):
    Image.fromarray(np.full((4, 4), 32768, dtype=np.uint16)).save(tmp_path / "deep.png")
    pixels = FileImages([tmp_path / "deep.png"], torch.zeros(1), channels, size=4)[[0]][0]
    assert (pixels == 127).all()


def test_an_image_of_fractions_is_refused(tmp_path):
    Image.fromarray(np.full((4, 4), 0.5, dtype=np.float32)).save(tmp_path / "fractions.tiff")
    with pytest.raises(ValueError, match=r"fractions\.tiff .*its pixels are fractions"):
        FileImages([tmp_path / "fractions.tiff"], torch.zeros(1), 3, size=4).held()


def colours(file, channels=3):
    """The first pixel of an image, and its last."""
    pixels = FileImages([file], torch.zeros(1), channels, 4)[[0]][0][0]
    return pixels[:, 0, 0].tolist(), pixels[:, -1, -1].tolist()


def half(mode, first, last, **info):
    """An image of 4x4 pixels, of one colour above and another below."""
    image = Image.new(mode, (4, 4), first)
    image.paste(last, (0, 2, 4, 4))
    image.info |= info
    return image


RED, GREEN = (255, 0, 0), (0, 255, 0)
PALETTE = Image.new("P", (4, 4))
PALETTE.putpalette([*GREEN, *RED])
PALETTE.paste(1, (0, 0, 4, 2))
DEEP = Image.fromarray(np.repeat(np.array([[65535], [65535], [257 * 3], [257 * 3]], dtype=np.uint16), 4, axis=1))
KINDS = {
    "colour": (half("RGB", RED, GREEN), "png", RED, GREEN),
    "half transparent": (half("RGBA", (255, 0, 0, 255), (0, 0, 0, 127)), "png", RED, (128, 128, 128)),
    "colours hidden under transparent pixels": (half("RGBA", (255, 0, 0, 255), (9, 9, 9, 0)), "png", RED, (255,) * 3),
    "grey with alpha": (half("LA", (40, 255), (40, 0)), "png", (40,) * 3, (255,) * 3),
    "one transparent colour": (half("RGB", RED, GREEN, transparency=GREEN), "png", RED, (255,) * 3),
    "one transparent grey": (half("L", 40, 9, transparency=9), "png", (40,) * 3, (255,) * 3),
    "palette": (PALETTE, "png", RED, GREEN),
    "palette with a transparent colour": (PALETTE, "gif", RED, (255,) * 3),
    "black and white": (half("1", 1, 0), "png", (255,) * 3, (0,) * 3),
    "grey": (half("L", 40, 9), "png", (40,) * 3, (9,) * 3),
    "16 bits": (DEEP, "png", (255,) * 3, (3,) * 3),
    "16 bits with a transparent grey": (DEEP, "png", (255,) * 3, (255,) * 3),
    "16 bits, the other end first": (DEEP, "tiff", (255,) * 3, (3,) * 3),
    "inks": (half("CMYK", (0, 255, 255, 0), (255, 0, 255, 0)), "tiff", RED, GREEN),
}


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_image_comes_out_in_its_colours(tmp_path, name):
    image, ending, first, last = KINDS[name]
    if "transparent grey" in name and image is DEEP:
        settings = {"transparency": 257 * 3}
    else:
        settings = {"transparency": 0} if name == "palette with a transparent colour" else {}
    file = tmp_path / f"a.{ending}"
    image.save(file, **settings)
    assert colours(file) == (list(first), list(last))
    grey = [Image.new("RGB", (1, 1), tuple(colour)).convert("L").getpixel((0, 0)) for colour in (first, last)]
    assert colours(file, channels=1) == ([grey[0]], [grey[1]])


def test_greys_of_32_bits_are_refused_where_16_do_not_hold_them(tmp_path):
    file = tmp_path / "a.tiff"
    Image.fromarray(np.full((4, 4), 70_000, dtype=np.int32)).save(file)
    with pytest.raises(ValueError, match=r"a\.tiff .*its pixels are from 70000 to 70000, and not of 16 bits"):
        FileImages([file], torch.zeros(1), 3, 4).read(file)
    Image.fromarray(np.full((4, 4), 255, dtype=np.int32)).save(file)
    with pytest.raises(ValueError, match=r"a\.tiff .*its pixels take 32 bits, and would be black; save it with 8"):
        FileImages([file], torch.zeros(1), 3, 4).read(file)


def pipe(file):
    os.mkfifo(file)


def socket_file(file):
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind(str(file))


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (pipe, "not a file"),
        (socket_file, "not a file"),
        (lambda file: file.symlink_to("/dev/zero"), "not a file"),
        (lambda file: file.symlink_to("/dev/null"), "not a file"),
        (lambda file: file.symlink_to("no such"), "a link to nothing"),
        (lambda file: file.symlink_to(file), "a link to nothing"),
    ],
)
def test_what_is_no_file_is_named(folder, monkeypatch, make, what):
    monkeypatch.chdir(folder)  # the path of a socket is short
    make(Path("red/z.png"))
    with pytest.raises(ValueError, match=rf"red/z\.png has the name of an image, and is {what}; remove it"):
        ImageFolder(".", size=8)
    with pytest.raises(ValueError, match=r"cannot read red/z\.png as an image"):
        FileImages([Path("red/z.png")], torch.zeros(1), 3, 8).read(Path("red/z.png"))
    data = ImageFolder(".", size=8, batch_size=2, skip_broken=True)
    with pytest.warns(UserWarning, match=r"1 of 7 images are left out: cannot read red/z\.png"):
        data.setup()


def test_links_are_followed_but_not_in_circles(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    write(elsewhere / "g.png", 0)
    (folder / "black").symlink_to(elsewhere)
    (folder / "red" / "h.png").symlink_to(elsewhere / "g.png")
    data = ImageFolder(str(folder), size=8, labels=True)
    assert (len(data.files), data.class_names) == (8, ["black", "grey", "red"])
    (folder / "red" / "back").symlink_to(folder)
    with pytest.raises(ValueError, match="red/back is a link to a folder that it is in"):
        ImageFolder(str(folder), size=8)


def test_a_folder_that_cannot_be_read_is_named(folder, monkeypatch):
    def denied(path):
        if str(path).endswith("grey"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    scan = os.scandir
    monkeypatch.setattr(os, "scandir", denied)
    with pytest.raises(PermissionError, match="grey"):
        ImageFolder(str(folder), size=8)


@pytest.mark.parametrize("memory", [1, 0])
def test_broken_images_are_left_out_where_that_is_asked_for(folder, memory):
    (folder / "red" / "broken.png").write_bytes(b"<html>")
    (folder / "grey" / "cut.gif").write_bytes((folder / "grey" / "d.gif").read_bytes()[:30])
    data = ImageFolder(str(folder), size=8, labels=True, batch_size=2, memory=memory, skip_broken=True)
    with pytest.warns(UserWarning, match=r"2 of 8 images are left out: cannot read .*cut\.gif as an image"):
        data.setup()
    labels = torch.cat([split[range(len(split))][1] for split in data.splits.values()])
    assert sorted(labels.tolist()) == [0, 0, 0, 1, 1, 1]
    for file in data.files:
        file.write_bytes(b"")
    with pytest.raises(ValueError, match=r"no image can be read; cannot read"):
        ImageFolder(str(folder), size=8, skip_broken=True).setup()


@pytest.mark.parametrize("content", [b"", b"<html>", b"\x89PNG\r\n\x1a\n"])
def test_a_broken_image_is_named(folder, content):
    (folder / "red" / "broken.png").write_bytes(content)
    with pytest.raises(ValueError, match=r"broken\.png"):
        ImageFolder(str(folder), size=8).setup()


def test_a_truncated_image_is_named(folder):
    file = folder / "red" / "cut.jpg"
    write(file, (1, 2, 3), (64, 64))
    file.write_bytes(file.read_bytes()[:400])
    with pytest.raises(ValueError, match=r"cut\.jpg"):
        ImageFolder(str(folder), size=8).setup()


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"root": "/no/such/folder"}, "root is /no/such/folder"),
        ({"size": 0}, "size is 0"),
        ({"size": "16"}, "size: expected a side, or a height and a width, got '16'"),
        ({"size": (8, 8, 3)}, r"size: expected a side, or a height and a width, got \(8, 8, 3\)"),
        ({"channels": 4}, "channels is 4"),
        ({"held_out": 1.0}, "held_out is 1"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"workers": -1}, "workers is -1"),
    ],
)
def test_impossible_folders_are_refused(folder, settings, field):
    with pytest.raises(ValueError, match=field):
        ImageFolder(**{"root": str(folder), "size": 8} | settings)


def classes(folder, *names):
    for name in names:
        write(folder / name / "a.png", 0)
    return str(folder)


def test_classes_with_numbers_are_in_the_order_of_their_values_or_in_that_given(tmp_path):
    assert ImageFolder(classes(tmp_path / "others", "٣", "a"), size=8, labels=True).class_names == ["a", "٣"]
    root = classes(tmp_path / "numbers", "1", "2", "10", "b10", "b9", "01")
    data = ImageFolder(root, size=8, labels=True)
    assert data.class_names == ["01", "1", "2", "10", "b9", "b10"]
    for file, label in zip(data.files, data.targets, strict=True):
        assert data.class_names[label] == file.parent.name
    given = ["b9", "1", "10", "2", "b10", "01"]
    data = ImageFolder(root, size=8, labels=True, class_names=given)
    assert [given[label] for label in data.targets] == [file.parent.name for file in data.files]
    for wrong in (given[1:], [*given, "new"], [*given, "1"]):
        with pytest.raises(
            ValueError, match=r"class_names: expected each of \['01', '1', '2', '10', 'b9', 'b10'\] once"
        ):
            ImageFolder(root, size=8, labels=True, class_names=wrong)


@pytest.mark.parametrize("names", [("train", "test"), ("Train", "val", "test")])
def test_the_parts_of_a_data_set_are_not_classes(tmp_path, names):
    root = classes(tmp_path, *names)
    with pytest.raises(ValueError, match=rf"parts of a data set, not classes: .*; set root to {root}/\w+, or rename"):
        ImageFolder(root, size=8, labels=True)
    ImageFolder(root, size=8)
    assert ImageFolder(classes(tmp_path, "bus"), size=8, labels=True).class_names[-1] in ("bus", "val", "train")


def test_a_folder_without_images_or_without_classes_is_refused(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="has no images"):
        ImageFolder(str(tmp_path / "empty"), size=8)
    write(folder / "loose.png", 0)
    with pytest.raises(ValueError, match=r"loose\.png is in no class folder; move it into .*/CLASS"):
        ImageFolder(str(folder), size=8, labels=True)


def test_a_batch_larger_than_the_data_is_refused_with_both_numbers(folder):
    with pytest.raises(ValueError, match=r"batch_size is 100, .* 5$"):
        ImageFolder(str(folder), size=8, batch_size=100).setup()


def test_images_of_one_shape_are_read_as_they_are_and_others_refused(tmp_path):
    pixels = torch.randint(256, (3, 8, 8)).to(torch.uint8)
    for i, one in enumerate(pixels):
        Image.fromarray(one.numpy()).save(tmp_path / f"{i}.png")
    images = same_images(tmp_path, (1, 8, 8))
    assert torch.equal(images[range(3)][0], pixels.unsqueeze(1))
    Image.new("L", (8, 9)).save(tmp_path / "z.png")
    with pytest.raises(ValueError, match=r"z\.png is of 8x9 pixels, and must be of 8x8, as the data"):
        same_images(tmp_path, (1, 8, 8))


def test_a_fingerprint_of_files_is_of_their_names_and_lengths(tmp_path):
    files = [tmp_path / f"{i}.png" for i in range(3)]
    for i, file in enumerate(files):
        file.write_bytes(bytes(i + 1))
    one = FileImages(files, torch.zeros(3), 1, 8).fingerprint()
    assert one == FileImages(files, torch.zeros(3), 1, 8).fingerprint()
    others = {FileImages(files[:2], torch.zeros(2), 1, 8).fingerprint()}
    others.add(FileImages(files, torch.ones(3), 1, 8).fingerprint())
    others.add(FileImages(files, torch.zeros(3), 1, 16).fingerprint())
    others.add(FileImages(files, torch.zeros(3), 3, 8).fingerprint())
    files[0].write_bytes(bytes(9))
    others.add(FileImages(files, torch.zeros(3), 1, 8).fingerprint())
    assert len({one, *others}) == 6


def test_a_size_may_be_a_height_and_a_width(tmp_path):
    write(tmp_path / "a.png", GREEN, (40, 20))
    half("RGB", RED, GREEN).resize((40, 20), Image.Resampling.NEAREST).save(tmp_path / "b.png")
    data = ImageFolder(str(tmp_path), size=(4, 8), batch_size=1)
    data.setup()
    assert data.shape == (3, 4, 8)
    assert {tuple(split[[0]][0].shape) for split in data.splits.values()} == {(1, 3, 4, 8)}
    files, labels = [tmp_path / "b.png"], torch.zeros(1)
    pixels = FileImages(files, labels, 3, (4, 8)).held().values[0]
    assert (pixels[0, :2, :] > 200).all()
    assert (pixels[1, 2:, :] > 200).all()
    sizes = [8, (8, 8), (4, 8), (8, 4)]
    known = [FileImages(files, labels, 3, size).fingerprint() for size in sizes]
    assert (known[0] == known[1], len(set(known))) == (True, 3)
    images = same_images(tmp_path, (3, 20, 40))
    assert images[[0, 1]][0].shape == (2, 3, 20, 40)
    with pytest.raises(ValueError, match=r"must be of 20x40, as the data"):
        same_images(tmp_path, (3, 40, 20))


def test_files_that_are_left_out_are_counted_by_their_ending(folder):
    for name in ("a.HEIC", "b.heic", "red/c.heic", "no_ending", "z.zip", ".DS_Store", ".thumbnails/t.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"?")
    with pytest.warns(UserWarning, match="6 of 14 files") as caught:
        ImageFolder(str(folder), size=8)
    counts = "3 .heic, 2 hidden, 1 without an ending, 1 .zip, 1 .txt"
    said = {str(warning.message) for warning in caught}
    assert len(said) == 1
    assert sorted(re.search(r"left out are (.*) \(", said.pop())[1].split(", ")) == sorted(counts.split(", "))


@pytest.mark.parametrize(
    ("name", "counts"), [("a.zip", "1 .zip"), ("a", "1 without an ending"), (".a.png", "1 hidden")]
)
def test_a_folder_of_other_files_says_what_it_holds(tmp_path, name, counts):
    (tmp_path / name).write_bytes(b"?")
    with pytest.raises(ValueError, match=rf"0 of 1 files are images; left out are {counts} \(an image needs"):
        ImageFolder(str(tmp_path), size=8)


def test_a_folder_of_one_image_is_refused_and_of_two_is_split(tmp_path):
    write(tmp_path / "a.png", 0)
    with pytest.raises(ValueError, match="expected at least 2 images, one to hold out, in"):
        ImageFolder(str(tmp_path), size=8)
    write(tmp_path / "b.png", 255)
    for held_out in (0.01, 0.99):
        data = ImageFolder(str(tmp_path), size=8, batch_size=1, held_out=held_out)
        data.setup()
        assert {name: len(split) for name, split in data.splits.items()} == {"train": 1, "val": 1}
    (tmp_path / "b.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"1 image can be read; cannot read .*b\.png"):
        ImageFolder(str(tmp_path), size=8, batch_size=1, skip_broken=True).setup()


def test_exact_copies_are_counted(tmp_path):
    for i, grey in enumerate((0, 0, 9, 9, 9, 20)):
        write(tmp_path / f"{i}.png", grey, mode="L")
    with pytest.warns(UserWarning, match="3 of 6 images are exact copies of another"):
        ImageFolder(str(tmp_path), size=8, batch_size=1).setup()


def test_of_a_file_of_several_images_the_first_is_used_and_it_is_said(tmp_path):
    file = tmp_path / "stack.tiff"
    Image.new("L", (4, 4), 30).save(file, save_all=True, append_images=[Image.new("L", (4, 4), 90)])
    with pytest.warns(UserWarning, match="of a TIFF file of several images the first is used"):
        assert colours(file, channels=1) == ([30], [30])


def test_a_folder_of_grey_images_in_three_channels_is_told_of_channels(tmp_path, recwarn):
    for i in range(4):
        write(tmp_path / f"{i}.png", 40 * i, mode="L")
    ImageFolder(str(tmp_path), size=8, batch_size=1, channels=1).setup()
    assert not [warned for warned in recwarn if "grey" in str(warned.message)]
    with pytest.warns(UserWarning, match=r"all images of .* are grey; set data.channels to 1"):
        ImageFolder(str(tmp_path), size=8, batch_size=1).setup()
    write(tmp_path / "colour.png", (9, 0, 0))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*grey")
        ImageFolder(str(tmp_path), size=8, batch_size=1).setup()


def test_images_of_one_shape_have_it_once_they_are_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    Image.new("L", (20, 12)).save(tmp_path / "a.png", exif=exif)
    assert same_images(tmp_path, (1, 20, 12))[[0]][0].shape == (1, 1, 20, 12)
    with pytest.raises(ValueError, match=r"a\.png is of 12x20 pixels, and must be of 20x12"):
        same_images(tmp_path, (1, 12, 20))
