"""Who takes part: one class each, all with the face of candidate.Candidate."""
