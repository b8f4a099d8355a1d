"""Optuna studies over a space, on Ray workers, logged to MLflow: one command a file.

`run` searches, `spaces` lists, `export` writes the chosen configuration, `train` trains it, `sync` rebuilds MLflow.
"""
