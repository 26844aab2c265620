"""What is tried next and where it is kept: optuna studies, evolution, storage and Pareto fronts."""
