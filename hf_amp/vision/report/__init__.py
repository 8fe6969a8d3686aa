"""What trainings came to: experiments over seeds, comparisons, metrics, figures, model cards, flatness."""
