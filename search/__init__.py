"""Optuna studies over a space, on Ray workers, logged to MLflow: one command a file.

`run` searches, `spaces` lists, `export` writes the chosen configuration or the whole study, `import` restores a study,
`train` trains a configuration, `sync` rebuilds MLflow.
"""
