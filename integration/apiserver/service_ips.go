package main

import (
	"fmt"
	"net"
	"sync/atomic"

	corev1 "k8s.io/api/core/v1"
)

// Addresses of Services that name none: 10.96.0.0/16, from .11 up.
const firstServiceIP = 11

// allocator hands out addresses in order. What was handed out before a restart is told to it by `seen`.
type allocator struct{ highest atomic.Uint32 }

var serviceIPs allocator

func (a *allocator) next() string {
	n := a.highest.Add(1) + firstServiceIP - 1
	return fmt.Sprintf("10.96.%d.%d", n>>8&0xff, n&0xff)
}

func (a *allocator) seen(services []corev1.Service) {
	for _, service := range services {
		ip := net.ParseIP(service.Spec.ClusterIP).To4()
		if ip == nil || ip[0] != 10 || ip[1] != 96 {
			continue
		}
		n := uint32(ip[2])<<8 | uint32(ip[3])
		if n >= firstServiceIP && n-firstServiceIP+1 > a.highest.Load() {
			a.highest.Store(n - firstServiceIP + 1)
		}
	}
}
