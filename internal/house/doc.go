// Package house has the tests of how the package in the root is built and written: that its
// files use each other in one direction only, and that its comments can be read. make lint
// runs them.
package house
