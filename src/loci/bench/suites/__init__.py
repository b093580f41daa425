"""One file a suite: a function run(...) that returns figures as a dict."""
