// Empty: stands for a module that is required, but of which nothing that we build is imported.
module absent/dang

go 1.26.1
