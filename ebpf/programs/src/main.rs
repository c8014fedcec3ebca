#![no_std]
#![no_main]
use aya_ebpf::{macros::{classifier, map}, maps::HashMap, programs::TcContext};
use hawser_ebpf_common::lb::*;
#[map(name = "hawser_lb4_services")]
static SERVICES: HashMap<ServiceKey4, ServiceValue4> = HashMap::pinned(65536, 1);
#[classifier]
pub fn from_pod(ctx: TcContext) -> i32 {
    let k = ServiceKey4::master(ctx.len(), 1, 6);
    match unsafe { SERVICES.get(&k) } { Some(v) => v.count as i32, None => 0 }
}
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! { loop {} }
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
