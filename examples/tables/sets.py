"""Two tables that ship with scikit-learn, as CSV files.

    python sets.py tumours.csv diabetes.csv

Tumours: 569 breast masses, 30 measures of each, malignant or benign. Diabetes: 442 patients, ten measures,
and whether the disease had progressed beyond the median a year later.
"""

import sys

from sklearn.datasets import load_breast_cancer, load_diabetes


def main(tumours: str, diabetes: str) -> None:
    data = load_breast_cancer(as_frame=True)
    table = data.frame.assign(diagnosis=data.target_names[data.target])
    table.drop(columns="target").to_csv(tumours, index=False)
    table = load_diabetes(as_frame=True, scaled=False).frame
    whole = [name for name in table if (table[name] % 1 == 0).all()]
    table = table.astype(dict.fromkeys(whole, int))
    table["progressed"] = (table["target"] > table["target"].median()).map(
        {True: "yes", False: "no"}
    )
    table.drop(columns="target").to_csv(diabetes, index=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
