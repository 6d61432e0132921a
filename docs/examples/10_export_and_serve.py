# %% [markdown]
# # Exporting and serving
#
# A classifier of your own images is to be used elsewhere: in a program without this package, or by
# people in a browser. This example exports one to ONNX and runs it with onnxruntime, then serves it
# and sends it a picture. Each step is also one command.

# %%
import json
import runpy
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import onnxruntime
from PIL import Image
from sklearn.datasets import load_digits
from starlette.testclient import TestClient

from fewshot_blo.finetune import Source, fit, read_labelled, save_classifier
from fewshot_blo.finetune.export import export
from fewshot_blo.finetune.images import as_pixels
from fewshot_blo.finetune.serving.app import application
from fewshot_blo.finetune.serving.versions import Versions

# %% [markdown]
# ## A classifier
#
# As in the example "Your own images", pictures are handwritten digits, here 0 to 4, eight labelled
# ones of each. They are written as files of an odd size, for a classifier meets such files.

# %%
digits, labels = load_digits(return_X_y=True)
order = np.random.default_rng(0).permutation(len(labels)).tolist()
kept: list[int] = []


def picture(number: int) -> Image.Image:
    """A digit as a picture of 50 by 40 pixels."""
    small = Image.fromarray((255 * digits[number] / 16).astype("uint8").reshape(8, 8))
    wide = Image.new("L", (50, 40))
    wide.paste(small.resize((32, 32)), (9, 4))
    return wide


for label in range(5):
    folder = Path("digits", f"digit {label}")
    folder.mkdir(parents=True)
    for number in [n for n in order if labels[n] == label][:8]:
        picture(number).save(folder / f"{number}.png")
        kept.append(number)
data = read_labelled("digits", size=28)
print(data.class_names, data.counts.tolist())

# %% [markdown]
# A network of your own is a function in a module. Here its weights are those of a model that comes
# with the package, by name. The file of a classifier names the function, and whoever loads the file
# has to name it too, so that a file cannot choose code to run.

# %%
Path("my_networks.py").write_text(
    '''
from torch import Tensor

from fewshot_blo import Conv4, load_pretrained


class GreyConv4(Conv4):
    """Takes the mean of the colours, for the weights are of grey pictures."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.mean(1, keepdim=True))


def omniglot() -> Conv4:
    network = GreyConv4(hidden=64)
    trained = load_pretrained("omniglot-5w1s-protonet").problem.network
    # The trained network has no counters of batches, and PyTorch's batch norm has.
    network.load_state_dict(trained.state_dict(), strict=False)
    return network
''',
    encoding="utf-8",
)
source = Source("my_networks:omniglot")
backbone = source.load(size=28)
classifier, selection = fit(data, backbone, source, adapts="head", progress=False)
save_classifier(classifier, "classifier.pt")
print(selection.describe())

# %% [markdown]
# ## Export
#
# `export` writes three files: the model, a description in JSON, and a script that labels pictures
# with nothing but Pillow, numpy and onnxruntime. Before they appear, it labels pictures of many
# sizes, modes and orientations with both the classifier and the script.

# %%
agreement = export(classifier, Path("model.onnx"))
for path in sorted(Path().glob("model*")):
    print(f"{path.name:18} {path.stat().st_size / 1024:6.0f} KiB")
print(agreement.describe())
assert not agreement.other_labels

# %% [markdown]
# ## The same answers in onnxruntime
#
# The model takes decoded pictures of any size, uint8 `[batch, height, width, 3]`. Cropping,
# resizing, the network, its fine-tuned head and the calibration are inside. Here it labels 200
# digits that were never labelled.

# %%
session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
for value in (*session.get_inputs(), *session.get_outputs()):
    print(f"{value.name}: {value.type} {value.shape}")

new = [n for n in order if labels[n] < 5 and n not in kept][:200]
pixels = np.stack([np.asarray(picture(n).convert("RGB")) for n in new])
found = session.run(["probabilities"], {"images": pixels})[0]
expected = classifier.predict(as_pixels([picture(n) for n in new], 28)).probabilities.numpy()

same = found.argmax(1) == expected.argmax(1)
right = found.argmax(1) == np.array([labels[n] for n in new])
print(f"{same.sum()} of {len(new)} labels are those of the classifier")
print(f"largest difference of a probability {np.abs(found - expected).max():.1e}")
print(f"{100 * right.mean():.1f} % of the labels are right")
assert same.all()

# %%
shown = [*np.flatnonzero(right)[:6].tolist(), *np.flatnonzero(~right)[:6].tolist()]
figure, axes = plt.subplots(2, 6, figsize=(9, 3.8), layout="constrained")
for axis in axes.flat:
    axis.set_axis_off()
for axis, n in zip(axes.flat, shown, strict=False):
    axis.imshow(pixels[n])
    axis.set_title(
        f"{data.class_names[found[n].argmax()]}, {100 * found[n].max():.0f} %", fontsize=10
    )
figure.suptitle("Answers of onnxruntime: right (above) and wrong (below)")
plt.show()

# %% [markdown]
# ## The script beside it
#
# `python model_predict.py PICTURES...` prints a line for each picture. Here it is called from
# Python.

# %%
picture(new[0]).save("new.png")
runpy.run_path("model_predict.py")["main"](["new.png", "--coverage", "0.9"])
print(f"in truth a {labels[new[0]]}")

# %% [markdown]
# ## Serving
#
# `fewshot-blo serve` opens a page in the browser, and the same server answers programs. Here
# starlette's test client sends the requests, so that nothing listens on a port.

# %%
server = application(Versions(classifier, Path("classifier.pt")))
client = TestClient(server, base_url="http://127.0.0.1:8000")
reply = client.post("/predict", files=[("files", ("new.png", Path("new.png").read_bytes()))])
answer = json.loads(reply.text, parse_float=lambda text: round(float(text), 3))
print(reply.status_code, json.dumps(answer, indent=1))
served = reply.json()[0]["probabilities"]
assert np.allclose(list(served.values()), expected[0], atol=1e-6)

# %% [markdown]
# A file that is no picture gets an error of its own, and the others are answered. A request that
# bears the name of another host is refused.

# %%
reply = client.post("/predict", files=[("files", ("note.png", b"some text"))])
print(reply.status_code, reply.json()[0]["error"])
reply = client.get("/classes", headers={"host": "example.org"})
print(reply.status_code, reply.json()["error"])

# %% [markdown]
# ## The same on the command line
#
# `finetune` writes `runs/finetune/classifier.pt`. A module of your own is found if its folder is in
# `PYTHONPATH`. With a network of torchvision, timm or transformers `--own` is not needed.
#
#     fewshot-blo finetune digits --backbone my_networks:omniglot --size 28 --adapts head
#     fewshot-blo export runs/finetune/classifier.pt model.onnx --own my_networks:omniglot
#     python model_predict.py PICTURES...
#     fewshot-blo serve runs/finetune/classifier.pt --own my_networks:omniglot
#     curl -F files=@new.png http://127.0.0.1:8000/predict
#
# `export` writes `.pt2` files for `torch.export`, too, and `--resizing outside` leaves cropping and
# resizing to the caller, for large pictures.
#
# ## Limits
#
# - The model does not open files. Decoding, turning a photograph as its EXIF data say, and white
#   under transparency are in the script and in `model.json`; another program has to do them, too.
# - Only classifiers of square pictures are exported by `export`; for arrays and features there is
#   `to_module`.
# - The network must be one that `torch.export` can trace with any number of pictures. Networks that
#   `train` has converted cannot be: hence the copy of the weights into a plain `Conv4` above.
# - The exported model stays as it is. The server can learn classes and corrections, and says how
#   many of the new pictures it recognises when each is held out: read that, and fit anew where it
#   is low.
# - The server has no passwords. It is for this machine, unless `--host` opens it to all who reach
#   that address.
