# %% [markdown]
# # Your own images
#
# A folder of pictures becomes a classifier that says how accurate it will be on new ones, and when
# a picture is of none of its classes. Here the pictures are handwritten digits of scikit-learn,
# ten of each class. The network was meta-trained on Omniglot, characters of many alphabets: it
# has seen handwriting, but not this data set.

# %%
import re
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor, nn

from fewshot_blo import load_pretrained
from fewshot_blo.backbones import Backbone, Preprocessing
from fewshot_blo.finetune import fit
from fewshot_blo.finetune.classifier import Source
from fewshot_blo.finetune.labelled_folder import read_labelled
from fewshot_blo.finetune.report import Origin, write_report

# %% [markdown]
# ## A folder with one subfolder per class
#
# The digits 0 to 5 are the classes. Ten random pictures of each are labelled, the others are
# kept for the end.

# %%
digits, labels = load_digits(return_X_y=True)
pictures = [
    Image.fromarray((255 * d / 16).astype("uint8").reshape(8, 8)).resize((28, 28)) for d in digits
]
kept: set[int] = set()
order = np.random.default_rng(0).permutation(len(labels)).tolist()
for label in range(6):
    folder = Path("digits", f"digit {label}")
    folder.mkdir(parents=True)
    for number in [n for n in order if labels[n] == label][:10]:
        pictures[number].save(folder / f"{number}.png")
        kept.add(number)

data = read_labelled("digits", size=28)
print(data.class_names, data.counts.tolist())

# %% [markdown]
# ## The network, and the fit
#
# Any network from images to features will do: `load_backbone` has those of torchvision, timm and
# transformers. Here it is the encoder of a prototypical network that comes with the package:
# `fewshot-blo models` lists such models by name. `fit` tries several ways to fine-tune, compares
# them by cross-validation, and trains the best one on all pictures.


# %%
class Grey(nn.Module):
    """The mean of the colours, for a network that was trained on grey pictures."""

    def forward(self, x: Tensor) -> Tensor:
        """``[B, 1, H, W]`` of ``[B, 3, H, W]``."""
        return x.mean(1, keepdim=True)


network = load_pretrained("omniglot-5w1s-protonet").problem.network
backbone = Backbone(nn.Sequential(Grey(), network), Preprocessing(size=28))

classifier, selection = fit(
    data, backbone, Source("my_networks:omniglot"), adapts="head", progress=False
)
print(selection.describe())

# %% [markdown]
# ## Was the promise kept?
#
# The sentence above is known from the 60 labelled pictures alone, by holding some of them out in
# turn. The many pictures that were never labelled tell whether it is right.


# %%
def tensors(numbers: list[int]) -> Tensor:
    """Pictures as ``fit`` sees them: uint8 ``[M, 3, 28, 28]``."""
    grey = torch.stack([torch.from_numpy(np.array(pictures[n])) for n in numbers])
    return grey[:, None].expand(-1, 3, -1, -1)


ones = [n for n in range(len(labels)) if labels[n] < 6 and n not in kept]
answers = classifier.predict(tensors(ones))
truth = torch.tensor([int(labels[n]) for n in ones])
right = answers.probabilities.argmax(1) == truth
by_class = torch.stack([right[truth == c].double().mean() for c in range(6)])
assert selection.interval is not None
low, high = selection.interval
print(f"accuracy on {len(ones)} new pictures: {100 * by_class.mean():.1f} %")
assert low <= by_class.mean() <= high

# %% [markdown]
# ## Pictures of none of the classes
#
# A 7 is none of the six classes. `fit` also says what share of such pictures it expects to flag as
# "none of these", from classes that were left out in turn. The digits 6 to 9 tell whether it is
# right.

# %%
strangers = classifier.predict(tensors([n for n in range(len(labels)) if labels[n] >= 6]))
print(selection.known.describe())
print(f"measured: {100 * (~answers.known).double().mean():.0f} % of new pictures of 0 to 5,")
found = 100 * (~strangers.known).double().mean()
print(f"and {found:.0f} % of {len(strangers.known)} pictures of 6 to 9")
assert selection.known.interval is not None
assert selection.known.interval[0] <= found / 100 <= selection.known.interval[1]

# %% [markdown]
# The interval is wide, for the digits differ: six classes say little about all others. What is not
# flagged is labelled as one of the six. Test it on strangers of your own before you rely on it.

# %%
shown = [int(i) for i in torch.cat([right.nonzero()[::70, 0][:6], (~right).nonzero()[:6, 0]])]
figure, axes = plt.subplots(2, 6, figsize=(9, 4), layout="constrained")
for axis, i in zip(axes.flat, shown, strict=False):
    chosen = int(answers.probabilities[i].argmax())
    axis.imshow(pictures[ones[i]], cmap="gray_r")
    axis.set_title(f"{chosen}, {100 * answers.probabilities[i, chosen]:.0f} %")
for axis in axes.flat:
    axis.set_axis_off()
figure.suptitle("Predicted digit and its probability: correct (above) and wrong (below)")
plt.show()

# %% [markdown]
# ## The report
#
# `write_report` writes one HTML page that loads nothing: the accuracy to expect, figures of each
# class, a confusion matrix, wrong and doubtful pictures, labels to check, near-duplicates, and a
# map of the features. These are its headings:

# %%
report = Path("report.html")
write_report(report, data, classifier, selection, Origin("digits", Path("classifier.pt")))
for heading in re.findall(r"<h2[^>]*>(.*?)</h2>", report.read_text(encoding="utf-8"), re.DOTALL):
    print(heading.strip())

# %% [markdown]
# On the command line, `fewshot-blo finetune FOLDER --backbone torchvision:mobilenet_v3_small` does
# all of this, and `predict`, `serve` and `export` use the classifier.
