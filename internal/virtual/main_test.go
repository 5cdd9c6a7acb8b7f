package virtual_test

import (
	"fmt"
	"os"
	"testing"

	"go.uber.org/goleak"

	"example.com/etcd/concurrency/internal/etcdtest"
)

func TestMain(m *testing.M) {
	code := m.Run()
	if err := goleak.Find(etcdtest.IgnoreServer()...); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}
