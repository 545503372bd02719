"""Rankings filled place by place: a softmax over the remaining items at each place, and samples from it."""
