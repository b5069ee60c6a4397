"""Functions that customers write: run in processes of their own, so that nothing they do reaches anybody else."""
