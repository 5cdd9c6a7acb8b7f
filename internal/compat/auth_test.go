package compat

import (
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"

	"example.com/etcd/concurrency/internal/etcdtest"
)

// tokenTTL is the life of an auth token in seconds.
const tokenTTL = 2

// password is that of all users.
const password = "secret"

// secure enables authentication, with the users root, who may do everything, and
// guest, who may read and write keys under "guest/".
func secure(t testing.TB, c *etcdtest.Cluster) {
	t.Helper()
	client := c.Client(t)
	ctx := t.Context()
	grantees := map[string]string{"root": "root", "guest": "guest"}
	for user, role := range grantees {
		if _, err := client.UserAdd(ctx, user, password); err != nil {
			t.Fatal(err)
		}
		if _, err := client.RoleAdd(ctx, role); err != nil {
			t.Fatal(err)
		}
		if _, err := client.UserGrantRole(ctx, user, role); err != nil {
			t.Fatal(err)
		}
	}
	_, err := client.RoleGrantPermission(ctx, "guest", "guest/", clientv3.GetPrefixRangeEnd("guest/"),
		clientv3.PermissionType(clientv3.PermReadWrite))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.AuthEnable(ctx); err != nil {
		t.Fatal(err)
	}
}

// login is a client of a user.
func (e *env) login(user string, endpoints ...string) *clientv3.Client {
	e.Helper()
	cfg := etcdtest.ClientConfig(endpoints...)
	cfg.Username, cfg.Password = user, password
	c, err := clientv3.New(cfg)
	e.must(err)
	e.Cleanup(func() { c.Close() })
	return c
}
