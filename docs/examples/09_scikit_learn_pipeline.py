# %% [markdown]
# # In a scikit-learn pipeline
#
# `FewShotClassifier` is a scikit-learn estimator. With `backbone=None` it takes features, such as
# the output of earlier steps of a pipeline, and fits the same calibrated heads as for pictures.
# Here these are the 8 × 8 digits that come with scikit-learn: nothing is downloaded.

# %%
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.model_selection import GridSearchCV, StratifiedShuffleSplit, cross_val_score
from sklearn.pipeline import make_pipeline

from fewshot_blo.finetune.estimator import FewShotClassifier

x, y = load_digits(return_X_y=True)
print(f"{len(x)} digits of {x.shape[1]} pixels, {len(set(y))} classes")

# %% [markdown]
# ## Cross-validation
#
# `StratifiedShuffleSplit` draws small training sets: 1, 2, 5 and 10 digits of each class, each
# with 500 other digits for testing. Each point is the mean of five draws.

# %%
pipeline = make_pipeline(PCA(9, random_state=0), FewShotClassifier(backbone=None))
shots = (1, 2, 5, 10)
scores = [
    cross_val_score(
        pipeline,
        x,
        y,
        cv=StratifiedShuffleSplit(5, train_size=10 * shot, test_size=500, random_state=0),
    )
    for shot in shots
]
means = np.array([100 * score.mean() for score in scores])
widths = np.array([100 * score.std(ddof=1) for score in scores])
for shot, mean, width in zip(shots, means, widths, strict=True):
    print(f"{shot:2} digits a class: {mean:.1f} ± {width:.1f} % (standard deviation of draws)")
assert means[-1] > means[0] + 10

plt.figure(figsize=(6, 3.5))
plt.errorbar(shots, means, widths, marker="o", capsize=3, label="mean ± standard deviation")
plt.axhline(10, color="gray", linestyle="--", label="guessing")
plt.ylim(0, 102)
plt.xlabel("labelled digits a class")
plt.ylabel("accuracy on 500 other digits, %")
plt.title("Few labelled digits, by cross-validation")
plt.legend(loc="center right")
plt.show()

# %% [markdown]
# ## Grid search
#
# Settings of other steps are chosen as in any pipeline.

# %%
search = GridSearchCV(
    make_pipeline(PCA(random_state=0), FewShotClassifier(backbone=None)),
    {"pca__n_components": [2, 5, 10, 20]},
    cv=StratifiedShuffleSplit(3, train_size=50, test_size=500, random_state=1),
)
search.fit(x[:600], y[:600])
for count, score in zip((2, 5, 10, 20), search.cv_results_["mean_test_score"], strict=True):
    print(f"{count:2} components: {100 * score:.1f} %")
assert search.best_params_["pca__n_components"] > 2
print(f"chosen: {search.best_params_}")
print(f"accuracy on the digits kept apart: {100 * search.score(x[600:], y[600:]):.1f} %")
