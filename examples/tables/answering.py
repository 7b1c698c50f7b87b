"""A model of a table as a program: python answering.py MODEL INPUTS.csv OUTPUTS

INPUTS has a row for each question, with the columns that the model was fitted on. OUTPUTS gets a column of
probabilities for each class, under its name.
"""

import sys

import joblib
import pandas as pd


def main(model: str, inputs: str, outputs: str) -> None:
    fitted = joblib.load(model)
    answers = fitted.predict_proba(pd.read_csv(inputs))
    pd.DataFrame(answers, columns=fitted.classes_).to_csv(outputs, index=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
