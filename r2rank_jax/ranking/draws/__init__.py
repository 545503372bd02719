"""Rankings that are filled place by place: the softmax over the remaining items at each place, and sampling."""
