include $(sort $(wildcard $(BR2_EXTERNAL_BELLWIRE_PATH)/package/*/*.mk))
