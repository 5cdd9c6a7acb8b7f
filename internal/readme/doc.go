// Package readme has the test of README.md: each of its programs works when it is pasted.
package readme
