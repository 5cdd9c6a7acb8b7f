// Package compat holds tests only: what this module's package promises beyond
// upstream's, case by case, run on both of them. A case is written once, against
// the interfaces of internal/library; see the table in table_test.go.
package compat
