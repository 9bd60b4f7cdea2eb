// Empty: stands for a module that is required, but of which nothing that we build is imported.
module absent/teav1

go 1.26.1
