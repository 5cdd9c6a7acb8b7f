package etcdtest_test

import (
	"testing"

	"go.uber.org/goleak"

	"example.com/etcd/concurrency/internal/etcdtest"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, etcdtest.IgnoreServer()...)
}
